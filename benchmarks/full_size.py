"""Train a model of full size for a few steps, ours or PEFT's, over 16 or 4 bits: one JSON line a step, and a summary.

usage: python -m benchmarks.full_size {lorakeet,peft} MODEL_DIR [--bits 16] [--tokens 512] [--passes 1] [--steps 4]
       [--recompute false|selective|full]

r=16 adapters on all linear layers learn rows of 512 random token ids, `--tokens` of them a step, in `--passes` passes
whose gradients are added up. The type is the fastest here (bf16 or fp32, `best_dtype`); PEFT's adapters are of that
type too, its layers are not compiled. The first step compiles and is reported apart, as is loading, whose seconds are
those of a first start or, in four bits, of one from the cache. `roofline` is what the model's own matrix products
would allow, timed in the same process beforehand.
To keep glibc from returning pages: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.system import ALL_LINEAR, DEVICE, LR, peft_model
from benchmarks.throughput import roofline_tokens_per_second
from lorakeet.machine.hardware import best_dtype
from lorakeet.machine.peak_memory import peak_memory_bytes
from lorakeet.models.config_file import load_config

ROW = 512
LEARNED_SHARE = 7 / 8
Step = Callable[[torch.Tensor], float]


def _first_learned() -> int:
    return round(ROW * (1 - LEARNED_SHARE))


def lorakeet(directory: Path, options: argparse.Namespace) -> Step:
    """Load the project's own model; give its step."""
    from lorakeet.config import LoraConfig, QuantizationConfig, TrainingConfig
    from lorakeet.data.conversation import Example
    from lorakeet.lora.inject import inject
    from lorakeet.machine.memory import keep_few_products, keep_freed_memory
    from lorakeet.models.recompute import recompute_activations
    from lorakeet.models.weights import load_model
    from lorakeet.objectives.sft import pack_for
    from lorakeet.quant.loading import load_quantized_model
    from lorakeet.training.loop import train_step
    from lorakeet.training.optimizer import build_optimizer

    keep_few_products()
    model: Any
    if options.bits == 4:
        model = load_quantized_model(directory, QuantizationConfig(load_in_4bit=True), dtype=best_dtype(DEVICE), device=DEVICE)
    else:
        model = load_model(directory, dtype=best_dtype(DEVICE), device=DEVICE)
    inject(model, LoraConfig(r=16, lora_alpha=32))
    if DEVICE == "cpu":
        keep_freed_memory()
    if options.recompute != "false":
        recompute_activations(model, options.recompute)
    model.compile_layers()
    model.train()
    optimizer = build_optimizer(model, TrainingConfig(learning_rate=LR))

    def step(rows: torch.Tensor) -> float:
        examples = [Example(row.tolist(), ((_first_learned(), ROW),), f"row {i}") for i, row in enumerate(rows)]
        size = -(-len(examples) // options.passes)
        batches = [pack_for(model, examples[at : at + size]) for at in range(0, len(examples), size)]
        return train_step(model, batches, optimizer, 1.0).loss

    return step


def peft(directory: Path, options: argparse.Namespace) -> Step:
    """Load transformers' model with PEFT's adapters; give a plain loop's step."""
    from transformers import BitsAndBytesConfig

    dtype = best_dtype(DEVICE)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = peft_model(
        directory, 16, ALL_LINEAR, dtype, quantization=four_bits if options.bits == 4 else None, autocast_adapter_dtype=False
    )
    model.train()
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=LR, weight_decay=0.0, fused=True)

    def step(rows: torch.Tensor) -> float:
        total = 0.0
        for part in rows.to(DEVICE).chunk(options.passes):
            labels = part.clone()
            labels[:, : _first_learned()] = -100
            loss = model(input_ids=part, labels=labels, use_cache=False).loss * len(part) / len(rows)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def train(options: argparse.Namespace) -> Iterator[dict]:
    """Train; give what each step took, then a summary."""
    config = load_config(options.model)
    roofline = roofline_tokens_per_second(config, options.tokens // options.passes, LEARNED_SHARE)
    torch.manual_seed(0)
    start = time.perf_counter()
    step = {"lorakeet": lorakeet, "peft": peft}[options.system](options.model, options)
    loading = time.perf_counter() - start
    yield {"loading_s": round(loading, 1), "peak_memory_bytes": peak_memory_bytes()}
    shape = options.steps, options.tokens // ROW, ROW
    rows = torch.randint(3, min(32000, config.vocab_size), shape, generator=torch.Generator().manual_seed(0))
    seconds, losses = [], []
    for part in rows:
        start = time.perf_counter()
        losses.append(step(part))
        seconds.append(time.perf_counter() - start)
        yield {"step_s": round(seconds[-1], 2), "peak_memory_bytes": peak_memory_bytes()}
    speed = options.tokens * len(seconds[1:]) / sum(seconds[1:])
    yield {
        **{key: str(value) for key, value in vars(options).items()},
        "tokens_per_second": round(speed, 2),
        "roofline": round(roofline, 2),
        "share_of_roofline": round(speed / roofline, 3),
        "first_step_s": round(seconds[0], 1),
        "loading_s": round(loading, 1),
        "peak_memory_bytes": peak_memory_bytes(),
        "losses": losses,
    }


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=["lorakeet", "peft"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--bits", type=int, default=16, choices=[4, 16])
    parser.add_argument("--tokens", type=int, default=ROW, help=f"tokens a step, whole rows of {ROW}")
    parser.add_argument("--passes", type=int, default=1, help="passes a step is computed in, one after the other")
    parser.add_argument("--steps", type=int, default=4, help="steps, of which the first is not timed")
    parser.add_argument("--recompute", default="selective", choices=["false", "selective", "full"], help="ours alone")
    options = parser.parse_args()
    if options.tokens % (ROW * options.passes) or options.steps < 2:
        parser.error(f"--tokens must be whole rows of {ROW} in every pass, and --steps at least 2")
    for line in train(options):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
