"""One LoRA linear layer, forward and backward, against PEFT's layer, interleaved in one process.

    python benchmarks/lora_layer.py [--rounds 15] [--tokens 2048] [--write benchmarks/results/lora_layer.md]

Measured: 3072 x 3072 without bias, r = 16, bfloat16 base and activations, gradient to the input, as inside a model.
Two cases: adapters in bfloat16 (`lora.Linear(dtype=bfloat16)` against PEFT with `autocast_adapter_dtype=False`), and
adapters in float32 (what `inject` and PEFT's `get_peft_model` do by default). Each round times every layer once, in
alternating order; medians are compared.
"""

import argparse
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

import lorakeet as lora
from lorakeet.lora.inject import inject

WIDTH, RANK, ALPHA = 3072, 16, 32


class Holder(nn.Module):
    """A model of one layer, as PEFT and inject want one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self.layer(x)


def peft_layer(*, wide: bool) -> nn.Module:
    """Return PEFT's layer, with float32 adapters where `wide`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["layer"])
    return get_peft_model(Holder(), config, autocast_adapter_dtype=wide).base_model.model


def our_layer(*, wide: bool) -> nn.Module:
    """Return ours: injected with float32 adapters where `wide`, else loralib's constructor in bfloat16."""
    if wide:
        return inject(Holder(), lora.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["layer"]))
    return lora.Linear(WIDTH, WIDTH, r=RANK, lora_alpha=ALPHA, bias=False, dtype=torch.bfloat16)


def measure(layers: dict[str, nn.Module], tokens: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of one forward and backward of every layer, `rounds` times, interleaved."""
    x = torch.randn(tokens, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(tokens, WIDTH, dtype=torch.bfloat16)
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(rounds + 2):
        names = list(layers) if turn % 2 else list(reversed(layers))
        for name in names:
            start = time.perf_counter()
            layers[name](x).backward(gradient)
            elapsed = time.perf_counter() - start
            x.grad = None
            layers[name].zero_grad()
            if turn >= 2:
                seconds[name].append(elapsed)
    return seconds


def report(tokens: int, rounds: int) -> str:
    """Run both cases and return the Markdown table."""
    rows = ["| adapters | PEFT, ms | Lorakeet, ms | Lorakeet / PEFT |", "|---|---|---|---|"]
    cases: dict[str, Callable[[], dict[str, nn.Module]]] = {
        "bfloat16": lambda: {"peft": peft_layer(wide=False), "lorakeet": our_layer(wide=False)},
        "float32": lambda: {"peft": peft_layer(wide=True), "lorakeet": our_layer(wide=True)},
    }
    for name, build in cases.items():
        seconds = measure(build(), tokens, rounds)
        theirs, ours = statistics.median(seconds["peft"]), statistics.median(seconds["lorakeet"])
        rows.append(f"| {name} | {theirs * 1e3:.1f} | {ours * 1e3:.1f} | {ours / theirs:.3f} |")
    return "\n".join(rows)


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    import peft

    table = report(options.tokens, options.rounds)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    text = "\n".join(
        [
            "# One LoRA linear layer, forward and backward",
            "",
            f"{date.today()}, commit {commit or 'unknown'}, {platform.machine()} with {os.cpu_count()} cores, torch "
            f"{torch.__version__} on {torch.get_num_threads()} threads, peft {peft.__version__}.",
            f"3072 x 3072, r = 16, {options.tokens} tokens, bfloat16 base; medians of {options.rounds} interleaved rounds.",
            f"Command: `python benchmarks/lora_layer.py --rounds {options.rounds} --tokens {options.tokens}`",
            "",
            table,
            "",
        ]
    )
    print(text)
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
