"""The Phi-3 model card's fine-tuning script, with its dictionaries as they are, on Lorakeet.

    python examples/finetune_phi3.py                                   the embedded model and data, no download
    python examples/finetune_phi3.py phi3-mini chats.jsonl
    torchrun --nproc-per-node 2 examples/finetune_phi3.py phi3-mini chats.jsonl

The run is written to output_dir, here ./checkpoint_dir; a run that is there already is never overwritten.
"""

import logging
import sys

import lorakeet
from lorakeet import dist

logger = logging.getLogger("finetune_phi3")

training_config = {
    "bf16": True,
    "do_eval": False,
    "learning_rate": 5.0e-06,
    "log_level": "info",
    "logging_steps": 20,
    "logging_strategy": "steps",
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 1,
    "max_steps": -1,
    "output_dir": "./checkpoint_dir",
    "overwrite_output_dir": True,
    "per_device_eval_batch_size": 4,
    "per_device_train_batch_size": 4,
    "remove_unused_columns": True,
    "save_steps": 100,
    "save_total_limit": 1,
    "seed": 0,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "gradient_accumulation_steps": 1,
    "warmup_ratio": 0.2,
}

peft_config = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "bias": "none",
    "task_type": "CAUSAL_LM",
    "target_modules": "all-linear",
    "modules_to_save": None,
}


def main(model: str = "demo", data: str = "demo") -> None:
    """Train, and say what came of it."""
    level = logging.INFO if dist.is_main() else logging.ERROR  # one of torchrun's processes speaks for all
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=level)
    logger.info("Training parameters %s", training_config)
    logger.info("PEFT parameters %s", peft_config)
    run = lorakeet.train(model, data, training_config=training_config, peft_config=peft_config)
    logger.info("Outcome %s", run.summary)
    logger.info("The adapter in %s loads in PEFT unchanged; lorakeet chat %s", run.adapter_directory, run.directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
