"""Predict roughly what a run will cost on this machine, from the model's sizes and a short measurement.

data in: a model directory and token counts → out: Cost. Nothing is loaded but config.json and a few small matrices.
The figures are estimates: within a factor of two, not more.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

# Measured with LoRA on all linears: half of the matrix-multiplication rate arrives, and each layer keeps about
# 32 activations of the hidden size for the backward pass.
_EFFICIENCY = 0.5
_KEPT_PER_LAYER = 32
_RUNTIME_BYTES = 600 * 1024**2


@dataclass(frozen=True)
class Cost:
    """A prediction for one pass over the data."""

    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int


def predict_cost(model_directory: Path, *, num_tokens: int, tokens_per_step: int) -> Cost | None:
    """Predict one epoch of LoRA training; None where config.json does not tell the sizes."""
    sizes = _sizes(model_directory)
    if sizes is None:
        return None
    num_parameters, layers, hidden = sizes
    # Two operations a weight forward, two more for the gradient of the activations; frozen weights need no third.
    flops_per_token = 4 * num_parameters
    tokens_per_second = _EFFICIENCY * _matmul_flops() / flops_per_token
    memory = 2 * num_parameters + _KEPT_PER_LAYER * layers * hidden * 2 * tokens_per_step + _RUNTIME_BYTES
    return Cost(num_tokens / tokens_per_second, tokens_per_second, int(memory))


def _sizes(directory: Path) -> tuple[int, int, int] | None:
    """Read (parameters that take part in matrix products, layers, hidden size) from config.json."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        intermediate = int(config["intermediate_size"])
    except (OSError, KeyError, ValueError, TypeError):
        return None
    width = int(config.get("head_dim") or hidden // heads)
    attention = hidden * width * (heads + 2 * kv_heads) + heads * width * hidden
    return layers * (attention + 3 * hidden * intermediate), layers, hidden


def _matmul_flops() -> float:
    """Measure the faster of bf16 and fp32 matrix multiplication, in operations a second."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, inner, columns = (1024, 1024, 1024) if device.type == "cpu" else (8192, 4096, 4096)
    best = 0.0
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.ones(rows, inner, dtype=dtype, device=device)
        b = torch.ones(inner, columns, dtype=dtype, device=device)
        torch.mm(a, b)
        for _ in range(3):
            start = time.perf_counter()
            product = torch.mm(a, b)
            product[0, 0].item()  # waits for the device
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - start))
    return best
