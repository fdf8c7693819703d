"""What this machine is best at, found by a short measurement."""

import contextlib
import logging
import platform
import time
from pathlib import Path

import torch

from lorakeet.errors import ConfigError
from lorakeet.files.cache import remembered

logger = logging.getLogger(__name__)

_CPU_PRODUCT = 128, 1024
"""Tokens and width of the product that is timed on a CPU: milliseconds, also where bfloat16 is slow."""


def best_dtype(device: str) -> torch.dtype:
    """Choose bfloat16 or float32 for matrix products on `device`; on a CPU by timing both, once."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    name = remembered(f"fastest dtype of {describe_cpu()}", _fastest_dtype)
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def choose_dtype(bf16: bool | None, device: str) -> torch.dtype:
    """Follow the configuration's `bf16`, or measure where it says nothing."""
    if bf16 is None:
        return best_dtype(device)
    if bf16 and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        raise ConfigError(
            "E-CFG-40", "this GPU cannot compute in bfloat16", place="training_config.bf16", fix="Set bf16: false"
        )
    if bf16 and device == "cpu" and best_dtype(device) == torch.float32:
        logger.warning(
            "bf16 is set, but this CPU is faster in float32, up to six times: leave bf16 out, or set it to null, and the "
            "faster is taken. Where memory is short, load_in_4bit saves more."
        )
    return torch.bfloat16 if bf16 else torch.float32


def describe_cpu() -> str:
    """Name everything that a measurement of this machine's arithmetic depends on."""
    model = ", ".join(cpu_info("model name")) or platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{model}, {capability}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def cpu_info(name: str) -> list[str]:
    """Return the different values of an entry of /proc/cpuinfo; none on systems that have no such file."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return sorted({value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name})


def _fastest_dtype() -> str:
    seconds = {name: _gemm_seconds(getattr(torch, name)) for name in ("bfloat16", "float32")}
    return min(seconds, key=lambda name: seconds[name])


def product_gflops(dtype: torch.dtype, device: str) -> float:
    """Measure billions of operations a second in the products of a frozen layer; a GPU gets ones that fill it."""
    num_tokens, width = (4096, 8192) if device.startswith("cuda") else _CPU_PRODUCT
    return 4 * num_tokens * width**2 / _gemm_seconds(dtype, device, num_tokens, width) / 1e9


def _gemm_seconds(
    dtype: torch.dtype, device: str = "cpu", num_tokens: int = _CPU_PRODUCT[0], width: int = _CPU_PRODUCT[1]
) -> float:
    """Time the two products of a frozen square layer, forward and backward: CPUs may be fast in one and slow in the other."""
    x = torch.ones(num_tokens, width, dtype=dtype, device=device)
    weight = torch.ones(width, width, dtype=dtype, device=device)
    begin, best = time.perf_counter(), float("inf")
    for number in range(4):  # the first one pays for the library's setup
        start = time.perf_counter()
        if number >= 2 and start - begin > 0.1:  # slow enough to be sure
            break
        torch.nn.functional.linear(x, weight)
        torch.mm(x, weight)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
