"""Python, the system, its devices, and the memory and disk that are left."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from lorakeet.doctor.finding import Finding
from lorakeet.files.cache import cache_dir
from lorakeet.formatting import size
from lorakeet.machine.hardware import cpu_info
from lorakeet.machine.memory import free_bytes
from lorakeet.version import __version__

LEAST_FREE_BYTES = 4_000_000_000
"""Memory and disk below which even the demo may not fit."""
VARIABLES = (
    "LORAKEET_CACHE",
    "LORAKEET_COMPILE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CXX",
)
"""Variables of the environment that change what a run does; their values hold no secrets."""


def software() -> Iterator[Finding]:
    """Yield versions of Lorakeet, Python, PyTorch and the system, and the variables that change what a run does."""
    yield Finding("environment", "lorakeet", __version__, f"lorakeet {__version__} in {Path(__file__).parents[1]}")
    is_virtual = sys.prefix != sys.base_prefix
    place = "a virtual environment" if is_virtual else "the system's Python"
    yield Finding("environment", "python", platform.python_version(), f"Python {platform.python_version()} in {place}")
    yield Finding("environment", "torch", torch.__version__, f"torch {torch.__version__}")
    yield Finding("environment", "system", platform.platform(), platform.platform())
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    text = ", ".join(f"{name}={value}" for name, value in found.items())
    yield Finding("environment", "variables", found, text or "no variable is set that changes how Lorakeet runs")


def devices() -> Iterator[Finding]:
    """Yield the CPU and every CUDA device."""
    name = ", ".join(cpu_info("model name")) or platform.processor() or platform.machine()
    num_cores, num_threads = os.cpu_count() or 1, torch.get_num_threads()
    yield Finding("devices", "cpu", name, f"{name}, {torch.backends.cpu.get_cpu_capability()}")
    few = num_threads < num_cores // 2
    fix = f"PyTorch uses {num_threads} of {num_cores} cores: unset OMP_NUM_THREADS unless you want that" if few else ""
    text = f"threads: {num_threads}, cores: {num_cores}"
    yield Finding("devices", "threads", num_threads, text, "note" if fix else "ok", fix)
    if not torch.cuda.is_available():
        # A driver without a CUDA build of PyTorch is the usual reason for a GPU that is never used.
        lost = shutil.which("nvidia-smi") is not None and torch.version.cuda is None
        fix = "There is an NVIDIA driver, but this PyTorch is for CPUs: install one for CUDA, see pytorch.org" if lost else ""
        yield Finding("devices", "gpus", [], "no CUDA device; training runs on the CPU", "note" if lost else "ok", fix)
        return
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    text = "; ".join(f"{gpu.name}, {size(gpu.total_memory)}" for gpu in gpus)
    values = [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus]
    fix = "Use all of them: torchrun --nproc-per-node gpu -m lorakeet train ..." if len(gpus) > 1 else ""
    yield Finding("devices", "gpus", values, text, "note" if fix else "ok", fix)


def room() -> Iterator[Finding]:
    """Yield free memory, and free disk where runs, caches and downloads go."""
    memory = free_bytes()
    if memory is None:
        yield Finding("room", "free_memory_bytes", None, "this system does not say how much memory is free")
    else:
        low = memory < LEAST_FREE_BYTES
        fix = "Little memory: close other programs, or train over 4 bits with load_in_4bit" if low else ""
        text = f"{size(memory)} of memory free"
        yield Finding("room", "free_memory_bytes", memory, text, "note" if low else "ok", fix)
    for name, path in (("runs", Path.cwd()), ("cache", cache_dir()), ("downloads", downloads_dir())):
        yield _disk(name, path)


def downloads_dir() -> Path:
    """Return where the hub client puts models."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _disk(name: str, path: Path) -> Finding:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    text = f"{size(free)} of disk free for {name}, in {path}"
    if not os.access(there, os.W_OK):
        fix = f"{there} cannot be written" + (": set LORAKEET_CACHE to another directory" if name == "cache" else "")
        return Finding("room", f"{name}_disk_bytes", free, text, "problem", fix)
    fix = f"Little disk for {name}: free some, {size(LEAST_FREE_BYTES)} is the least" if free < LEAST_FREE_BYTES else ""
    return Finding("room", f"{name}_disk_bytes", free, text, "note" if fix else "ok", fix)
