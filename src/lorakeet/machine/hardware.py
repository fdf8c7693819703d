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


def best_dtype(device: str) -> torch.dtype:
    """Choose bfloat16 or float32 for matrix products on `device`; on a CPU by timing both (about 50 ms), once."""
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
            "bf16 is set, but this CPU is faster in float32, up to six times: leave bf16 out and the faster is taken. "
            "Where memory is short, load_in_4bit saves more."
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


def _gemm_seconds(dtype: torch.dtype) -> float:
    """Time one product of the kind training is made of: 256 tokens through a layer of 1,024."""
    a, b = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first one pays for the library's setup
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return best
