"""Train one system on a workload's rows and print what it took, as one JSON line. Run by `benchmarks.throughput`.

usage: python -m benchmarks.system {lorakeet,trl,unsloth,peft,peft-learned} MODEL_DIR ROWS.json BATCH R TARGETS

lorakeet: the project's own training step. trl: SFTTrainer with its defaults. peft: a plain loop over PEFT's model,
tuned as well as its interfaces allow: rows sorted by length, adapters in the base's type, every layer compiled, fused
AdamW, no mask where nothing is padded; the caller keeps glibc from returning pages. peft-learned: the same with the
model's forward taken apart, so that the head and the loss only see learned tokens; `logits_to_keep` does not reach
that, since it keeps the same positions of every row, and was measured to gain nothing (420 tokens/s against 450 on W1).
All use the type this machine computes fastest in (bf16 or fp32, `best_dtype`), AdamW, gradient clipping and the same
rows, batch, rank and loss mask.
The first steps compile and are reported apart; all systems are timed on the same rows after them.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from benchmarks.workloads import WARM_UP, read_rows
from lorakeet.data.conversation import Example
from lorakeet.dist import device
from lorakeet.machine.hardware import best_dtype
from lorakeet.machine.peak_memory import peak_memory_bytes
from lorakeet.models.config_file import load_config, stored_parts
from lorakeet.models.families.shared import SPLIT

LR = 2e-4
DEVICE = device()
ALL_LINEAR = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
TARGETS = {"all-linear": ALL_LINEAR, "attention": ["qkv_proj", "o_proj"]}


def target_names(model_dir: Path, targets: str) -> list[str]:
    """Return the layers that get adapters, by the names that the model's checkpoint and so its peers have for them."""
    parts = stored_parts(load_config(model_dir))
    return [name for target in TARGETS[targets] for name in parts.get(target, [target])]


def lorakeet(
    model_dir: Path,
    rows: list[Example],
    batch: int,
    r: int,
    targets: list[str],
    *,
    after_step: Callable[[], None] = lambda: None,
) -> list[dict]:
    """Run the project's own step, and call `after_step` behind each."""
    from lorakeet.config import LoraConfig, TrainingConfig
    from lorakeet.lora.inject import inject
    from lorakeet.machine.memory import keep_few_products, keep_freed_memory
    from lorakeet.models.weights import load_model
    from lorakeet.objectives.sft import pack_for
    from lorakeet.training.loop import train_step
    from lorakeet.training.optimizer import build_optimizer

    keep_few_products()
    model = load_model(model_dir, dtype=best_dtype(DEVICE), device=DEVICE)
    torch.manual_seed(0)
    inject(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets))
    if DEVICE == "cpu":
        keep_freed_memory()
    model.compile_layers()
    model.train()
    config = TrainingConfig(learning_rate=LR, weight_decay=0.0)
    optimizer = build_optimizer(model, config)
    steps = []
    for part in _batches(rows, batch):
        start = time.perf_counter()
        outcome = train_step(model, [pack_for(model, part)], optimizer, 1.0)
        steps.append(_step(part, time.perf_counter() - start, outcome.loss))
        after_step()
    return steps


def peft(
    model_dir: Path, rows: list[Example], batch: int, r: int, targets: list[str], *, learned_only: bool = False
) -> list[dict]:
    """Run the tuned PEFT loop."""
    model = peft_model(model_dir, r, targets, best_dtype(DEVICE), autocast_adapter_dtype=False)
    torch._dynamo.config.cache_size_limit = 128
    for layer in head_of(model).model.layers:
        layer.compile(dynamic=True)
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=LR, weight_decay=0.0, fused=True)
    model.train()
    steps = []
    for part in _batches(rows, batch, by_length=True):
        inputs, labels = padded(part)
        start = time.perf_counter()
        if learned_only:
            loss = learned_losses(model, inputs, labels).mean()
        else:
            loss = model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps.append(_step(part, time.perf_counter() - start, loss.item()))
    return steps


def peft_learned(*arguments: Any) -> list[dict]:
    """Run the tuned PEFT loop with head and loss on learned tokens alone."""
    return peft(*arguments, learned_only=True)


def learned_losses(model: torch.nn.Module, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Compute the loss of every learned token, row by row, with logits for those tokens alone."""
    hidden = head_of(model).model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:] != -100
    logits = head_of(model).lm_head(hidden[wanted]).float()
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][wanted], reduction="none")


def trl(model_dir: Path, rows: list[Example], batch: int, r: int, targets: list[str]) -> list[dict]:
    """Run SFTTrainer with its defaults on the same token ids and mask."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=best_dtype(DEVICE))
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets, task_type="CAUSAL_LM")
    return _sft_trainer(model, model_dir, rows, batch, config)


def unsloth(model_dir: Path, rows: list[Example], batch: int, r: int, targets: list[str]) -> list[dict]:
    """Run Unsloth's model in TRL's SFTTrainer; on a GPU alone."""
    from unsloth import FastLanguageModel  # before TRL, which it patches

    model, _ = FastLanguageModel.from_pretrained(
        str(model_dir), max_seq_length=8192, dtype=best_dtype(DEVICE), load_in_4bit=False, local_files_only=True
    )
    # It splits Phi-3's fused layers, so that these are the same matrices.
    names = [name for target in targets for name in SPLIT.get(target, [target])]
    model = FastLanguageModel.get_peft_model(
        model, r=r, lora_alpha=2 * r, target_modules=names, lora_dropout=0, bias="none", use_gradient_checkpointing=False
    )
    return _sft_trainer(model, model_dir, rows, batch, None)


def _sft_trainer(model: Any, model_dir: Path, rows: list[Example], batch: int, peft_config: object) -> list[dict]:
    """Train with TRL and time its steps."""
    import tempfile

    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    dtype = best_dtype(DEVICE)
    steps: list[dict] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            if DEVICE != "cpu":
                torch.cuda.synchronize()
            part = rows[len(steps) * batch : (len(steps) + 1) * batch]
            steps.append(_step(part, time.perf_counter() - self.start, float("nan")))

    data = Dataset.from_list([{"input_ids": row.input_ids, "completion_mask": _mask(row)} for row in rows])
    with tempfile.TemporaryDirectory() as out:
        args = SFTConfig(
            output_dir=out,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            learning_rate=LR,
            bf16=dtype == torch.bfloat16,
            logging_steps=1000,
            save_strategy="no",
            report_to=[],
            max_length=8192,
            gradient_checkpointing=False,
            use_cpu=DEVICE == "cpu",
            lr_scheduler_type="constant",
        )
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(model_dir),
            peft_config=peft_config,
            callbacks=[Clock()],
        )
        # The same order for all, so that a step is the same rows.
        trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(trainer.train_dataset)
        trainer.train()
    return steps


def peft_model(
    model_dir: Path, r: int, targets: list[str], dtype: torch.dtype, *, quantization: object = None, **options: object
) -> torch.nn.Module:
    """Load transformers' model, quantised where asked, and put PEFT's adapters on it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    # Quantised weights would go to a GPU by themselves.
    quantized = {} if quantization is None else {"quantization_config": quantization, "device_map": DEVICE}
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, attn_implementation="sdpa", **quantized)
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(base, config, **options).to(DEVICE)


def head_of(model: torch.nn.Module) -> Any:
    """Return the causal language model under PEFT's wrappers."""
    return model.base_model.model


def padded(rows: list[Example]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Lay rows into one rectangle, as peers do: (input ids and, where there is padding, its mask), labels."""
    width = max(len(row.input_ids) for row in rows)
    inputs = {"input_ids": torch.tensor([row.input_ids + [2] * (width - len(row.input_ids)) for row in rows])}
    mask = torch.tensor([[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in rows])
    if not mask.all():
        inputs["attention_mask"] = mask
    labels = torch.tensor([_labels(row, width) for row in rows])
    return {name: tensor.to(DEVICE) for name, tensor in inputs.items()}, labels.to(DEVICE)


def _batches(rows: list[Example], batch: int, *, by_length: bool = False) -> Iterator[list[Example]]:
    """Cut rows into steps; the warm-up rows stay in front, the others may be sorted."""
    warm, timed = rows[: WARM_UP * batch], rows[WARM_UP * batch :]
    if by_length:
        timed = sorted(timed, key=lambda row: len(row.input_ids))
    rows = warm + timed
    for at in range(0, len(rows), batch):
        yield rows[at : at + batch]


def _mask(row: Example) -> list[int]:
    learned = {i for start, end in row.spans for i in range(start, end)}
    return [int(i in learned) for i in range(len(row.input_ids))]


def _labels(row: Example, width: int) -> list[int]:
    kept = [token if keep else -100 for token, keep in zip(row.input_ids, _mask(row), strict=True)]
    return kept + [-100] * (width - len(kept))


def _step(rows: list[Example], seconds: float, loss: float) -> dict:
    return {
        "tokens": sum(len(row.input_ids) for row in rows),
        "supervised": sum(row.num_supervised_tokens for row in rows),
        "seconds": seconds,
        "loss": loss,
    }


def main() -> None:
    """Measure and print."""
    name, model_dir, rows, batch, r, targets = sys.argv[1:]
    system = {"lorakeet": lorakeet, "trl": trl, "unsloth": unsloth, "peft": peft, "peft-learned": peft_learned}[name]
    examples, size = read_rows(Path(rows)), int(batch)
    # TRL compiles nothing: one warm-up step will do.
    skipped = WARM_UP - 1 if name in ("trl", "unsloth") else 0
    steps = system(Path(model_dir), examples[skipped * size :], size, int(r), target_names(Path(model_dir), targets))
    timed = steps[WARM_UP - skipped :]
    seconds = sum(step["seconds"] for step in timed)
    tokens = sum(step["tokens"] for step in timed)
    print(
        json.dumps(
            {
                "tokens_per_second": tokens / seconds,
                "supervised_tokens_per_second": sum(step["supervised"] for step in timed) / seconds,
                "peak_memory_bytes": peak_memory_bytes(),
                "first_step_s": steps[0]["seconds"],
                # What the first step took beyond its tokens at the later pace is compiling, and loading of compiled code.
                "compile_s": max(0.0, steps[0]["seconds"] - steps[0]["tokens"] * seconds / tokens),
                "losses": [step["loss"] for step in steps],
            }
        )
    )


if __name__ == "__main__":
    main()
