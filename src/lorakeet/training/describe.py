"""What is about to happen, in one line, before the first step.

data in: the configuration, the Trainer, its data → out: a sentence for the person who waits.
"""

import torch

from lorakeet.config import RunConfig, TrainingConfig
from lorakeet.data.pack import packing_stats
from lorakeet.data.prepare import PreparedData
from lorakeet.formatting import count
from lorakeet.quant.layers import num_weights
from lorakeet.training.loop import Trainer
from lorakeet.training.schedule import learning_rate, warmup_steps

LEAST_RATE, MOST_RATE = 1e-6, 0.1
"""Learning rates below and above these have never trained an adapter."""


def describe(config: RunConfig, trainer: Trainer, data: PreparedData) -> str:
    """Return one line about what is going to be trained."""
    weight, rows = trainer.model.lm_head.weight, data.train
    trainable = sum(param.numel() for param in trainer.named_params.values())
    total = num_weights(trainer.model)
    quantization = config.quantization_config
    bits = f" over a base of {8 if quantization.load_in_8bit else 4} bits" if quantization.is_on else ""
    packed = ""
    if trainer.rows is not None:
        length = config.training_config.max_length or 0
        stats = packing_stats([len(example.input_ids) for example in rows.examples], trainer.rows, length)
        packed = f"Packed into {stats.num_rows:,} rows of {length:,} tokens, {stats.waste:.1%} of them empty. "
    where = torch.cuda.get_device_name() if weight.is_cuda else f"{count(torch.get_num_threads(), 'CPU thread')}"
    dtype = str(weight.dtype).removeprefix("torch.")
    return (
        f"{config.model}: {trainable:,} of {total:,} parameters train, in {dtype}{bits} "
        f"on {where}. {count(len(rows.examples), 'conversation')} with {count(rows.num_tokens, 'token')}, "
        f"{rows.num_supervised_tokens:,} of them trained on; "
        f"{len(data.held_out):,} held out. {packed}{count(trainer.total_steps, 'step')}."
    )


def doubts(settings: TrainingConfig, num_steps: int, data: PreparedData) -> list[str]:
    """List what makes it likely that the run trains nothing, or that nobody will see what it has trained."""
    found = []
    warmup = 0 if settings.lr_scheduler_type == "constant" else warmup_steps(settings, num_steps)
    if warmup >= num_steps:
        most = max(learning_rate(step, num_steps, settings) for step in range(num_steps))
        trained = "hardly anything" if most else "nothing"
        found.append(
            f"The warm-up covers the whole run ({count(num_steps, 'step')}), so {trained} is trained: take more steps, or set "
            "warmup_steps to 0 and warmup_ratio to 0."
        )
    if not LEAST_RATE <= settings.learning_rate <= MOST_RATE:
        is_high = settings.learning_rate > MOST_RATE
        found.append(
            f"The learning rate {settings.learning_rate:g} is far {'above' if is_high else 'below'} what trains adapters (1e-5 "
            f"to 1e-2): expect a loss that {'rises' if is_high else 'does not fall'}. Try --lr 2e-4."
        )
    if settings.eval_strategy != "no" and not data.held_out:
        found.append("No row is held out, so nothing shows whether the run gets better: name --eval-data, or give more rows.")
    return found
