"""How much memory is left, and how training on the CPU is kept to that of its largest step, without losing time."""

import contextlib
import ctypes
import functools
import os
import sys
from pathlib import Path

import torch

from lorakeet.machine import tensor_heap

KEPT_PRODUCTS = 256
"""Matrix products whose code is kept, by size."""
PRODUCTS_A_PASS = 60
"""Products of different sizes in one forward and backward pass; all layers have the same."""
PRODUCT_BYTES = 2_200_000
"""What the process grows by for each kept product: 0.6 MB of code and what is made with it. Measured."""
_CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


def keep_few_products() -> None:
    """Let oneDNN keep the code of the latest few sizes of products, not of 1,024, unless the user has set a number.

    It reads this at the first product of a process; later it does nothing.
    """
    os.environ.setdefault(_CAPACITY, str(KEPT_PRODUCTS))


def product_bytes_to_come(dtype: torch.dtype, num_sizes: int, num_met: int) -> int:
    """Return by how much the code of matrix multiplications grows from `num_met` to `num_sizes` sizes of passes.

    Only bfloat16 on a CPU has such code; products in float32 come ready-made.
    """
    if dtype != torch.bfloat16:
        return 0
    number = os.environ.get(_CAPACITY, "")
    most = int(number) if number.isdecimal() else KEPT_PRODUCTS
    kept, met = (min(most, PRODUCTS_A_PASS * sizes) for sizes in (num_sizes, num_met))
    return PRODUCT_BYTES * max(0, kept - met)


def free_bytes() -> int | None:
    """Return how much memory this process may still take, swap included; None if the system does not say."""
    try:
        host = _numbers(Path("/proc/meminfo"))
        free = 1024 * (host["MemAvailable:"] + host["SwapFree:"])
    except (OSError, KeyError):
        return None
    with contextlib.suppress(OSError, KeyError, ValueError):  # no container, or one without a limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        free = min(free, limit - _numbers(group / "memory.stat")["anon"])
    return free


def _numbers(file: Path) -> dict[str, int]:
    """Read a file of lines that are a name and a number."""
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


@functools.cache
def keep_freed_memory() -> None:
    """Keep the memory that training frees and takes again every step, in a heap of its own where that can be had.

    Otherwise large blocks are mapped anew and zeroed by the kernel at each allocation: steps of 4,096 tokens run 17 %
    faster this way, those of 1,600 no differently. Acts on this process alone.
    """
    if tensor_heap.install() or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; musl has none
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
