"""Time attention on the CPU, the C++ kernel beside the blocks of PyTorch products, forward and backward.

usage: python -m benchmarks.attention
The type that is fastest here, the demo model's heads: 9 of queries, 3 of keys, width 64. Medians of nine, in
milliseconds.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from lorakeet.machine.hardware import best_dtype
from lorakeet.machine.memory import keep_freed_memory
from lorakeet.ops.attention import blockwise as blockwise_attention
from lorakeet.ops.attention import native as native_attention
from lorakeet.ops.attention.segments import NO_WINDOW, Documents

LENGTHS = [[190] * 8, [512] * 8, [4096]]
HEADS, KEY_HEADS, WIDTH = 9, 3, 64


def milliseconds(work: Callable[[], object]) -> float:
    """Return the median of nine calls, after three."""
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:]) * 1e3


def main() -> None:
    """Measure and print a Markdown table."""
    keep_freed_memory()
    dtype = best_dtype("cpu")
    print(f"{dtype}, forward + backward in milliseconds\n")
    print("| documents | kernel | PyTorch blocks |\n|---|---:|---:|")
    for lengths in LENGTHS:
        T, borders = sum(lengths), torch.tensor([0, *lengths]).cumsum(0).int()
        shapes = [(T, heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
        q, k, v = (torch.randn(shape).to(dtype) for shape in shapes)
        parents, grad = torch.full_like(borders, -1), torch.randn(T, HEADS * WIDTH).to(dtype)
        documents = Documents(borders, parents, NO_WINDOW)
        kept = native_attention.attend(q, k, v, documents)
        figures = []
        for backend, saved in ((native_attention, kept), (blockwise_attention, ())):
            forward = milliseconds(partial(backend.attend, q, k, v, documents))
            backward = milliseconds(partial(backend.attend_backward, grad, q, k, v, *saved, documents))
            figures.append(f"{forward:.1f} + {backward:.1f}")
        print(f"| {len(lengths)} of {lengths[0]} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
