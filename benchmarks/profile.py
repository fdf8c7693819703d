"""Say where a training step's time goes, so that on a new machine the next thing to speed up is read off, not guessed.

usage: python -m benchmarks.profile MODEL_DIR ROWS.json BATCH [R] [TARGETS] [--json]
The rows are those that `benchmarks.workloads.write_rows` writes. `make bench` prints the same table for each workload.

Warm-up steps come before; the profile is of the rest. Matrix products are listed by shape, each beside the fastest
product this machine made in the same process, so that a shape that its library is bad at stands out. What the profiler
saw no operation for is the interpreter, the launching of operations, and threads that wait.

M rows, K inner width, N columns of a product.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import system
from benchmarks.workloads import WARM_UP, read_rows
from lorakeet.machine.hardware import best_dtype

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
COPIES = ("aten::copy_", "aten::clone", "aten::cat", "aten::contiguous", "aten::fill_", "aten::zero_")
OPTIMIZER = ("aten::_fused_adamw_", "aten::_foreach_norm", "aten::_foreach_mul_", "aten::linalg_vector_norm")
SHOWN_SHAPES = 8


@dataclass(frozen=True)
class Part:
    """What one kind of work takes of a step."""

    name: str
    milliseconds: float
    """A step, on average."""
    gflops: float | None = None
    """Of matrix products: billions of operations a second."""


@dataclass(frozen=True)
class Breakdown:
    """Where the time of a step goes, and how fast memory and products are on this machine at best."""

    parts: list[Part]
    shapes: list[Part]
    step_milliseconds: float
    peak_gflops: float
    copy_gb_per_second: float


def main() -> None:
    """Train, profile, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("batch", type=int)
    parser.add_argument("r", type=int, nargs="?", default=16)
    parser.add_argument("targets", choices=list(system.TARGETS), nargs="?", default="all-linear")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    options = parser.parse_args()
    breakdown = measure(options.model, options.rows, options.batch, options.r, options.targets)
    print(json.dumps(asdict(breakdown)) if options.json else table(breakdown))


def measure(model: Path, rows: Path, batch: int, r: int, targets: str) -> Breakdown:
    """Train on the rows and profile all steps behind the warm-up."""
    # Loops that the compiler writes are named in the profile only if they are asked to be.
    torch._inductor.config.cpp.enable_kernel_profile = True
    examples = read_rows(rows)
    profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
    times: list[float] = []

    def after_step() -> None:
        times.append(time.perf_counter())
        if len(times) == WARM_UP:
            profiler.start()

    system.lorakeet(model, examples, batch, r, system.target_names(model, targets), after_step=after_step)
    profiler.stop()
    events = [
        (event.key, event.input_shapes, event.count, event.self_cpu_time_total / 1e3)
        for event in profiler.key_averages(group_by_input_shape=True)
    ]
    num_steps = len(times) - WARM_UP
    return breakdown_of(events, (times[-1] - times[WARM_UP - 1]) * 1e3 / num_steps, num_steps, r)


def breakdown_of(
    events: Iterable[tuple[str, list[list[int]], int, float]], step_milliseconds: float, num_steps: int, r: int
) -> Breakdown:
    """Sort operations into kinds of work.

    Args:
        events: name, shapes of the inputs, how often, and milliseconds in the operation itself.
        r: rank of the adapters; products with an inner or outer width up to twice that are theirs.
    """
    spent: dict[str, float] = defaultdict(float)
    operations: dict[str, float] = defaultdict(float)
    shapes: dict[str, float] = defaultdict(float)
    for name, inputs, count, milliseconds in events:
        if name in PRODUCTS:
            M, K, N = _product(name, inputs)
            kind = "products with A and B" if min(M, K, N) <= 2 * r else "products with weights"
            shape = f"{name.removeprefix('aten::')} {M} × {K} × {N}"
            shapes[shape] += milliseconds
            for key in (kind, shape):
                operations[key] += 2.0 * M * K * N * count
        else:
            kind = _kind(name)
        spent[kind] += milliseconds
    parts = [Part(kind, took / num_steps, _gflops(operations.get(kind), took)) for kind, took in spent.items()]
    seen = sum(part.milliseconds for part in parts)
    parts.append(Part("Python, launching, waiting", max(0.0, step_milliseconds - seen)))
    largest = sorted(shapes.items(), key=lambda item: -item[1])[:SHOWN_SHAPES]
    rates = [Part(shape, took / num_steps, _gflops(operations[shape], took)) for shape, took in largest]
    return Breakdown(
        parts=sorted(parts, key=lambda part: -part.milliseconds),
        shapes=rates,
        step_milliseconds=step_milliseconds,
        peak_gflops=max([square_gflops(), *(rate.gflops or 0.0 for rate in rates)]),
        copy_gb_per_second=copy_gb_per_second(),
    )


def _product(name: str, inputs: list[list[int]]) -> tuple[int, int, int]:
    """Return M, K, N of a product; of a batch of them, M of all. What is added comes before the factors, `out` behind them."""
    first = 1 if "add" in name else 0
    one, other = inputs[first], inputs[first + 1]
    batch = one[0] if len(one) == 3 else 1
    return batch * one[-2], one[-1], other[-1]


def _kind(name: str) -> str:
    if "attention" in name:
        return "attention"
    if name.startswith("lorakeet::"):
        return "quantised products"
    if name in COPIES:
        return "copies"
    if name in OPTIMIZER or name.startswith("Optimizer."):
        return "optimizer and clipping"
    return "norms, rotary positions, SwiGLU, loss"


def _gflops(operations: float | None, milliseconds: float) -> float | None:
    return None if operations is None or milliseconds <= 0 else operations / milliseconds / 1e6


def square_gflops(width: int = 1536, repeats: int = 5) -> float:
    """Time a square product in the type trained in; return the best rate."""
    one, other = (torch.randn(width, width).to(best_dtype("cpu")) for _ in range(2))
    times = [_seconds(lambda: torch.mm(one, other)) for _ in range(repeats)]
    return 2 * width**3 / min(times) / 1e9


def copy_gb_per_second(num_bytes: int = 2**28, repeats: int = 5) -> float:
    """Time a copy that no cache holds; return bytes read and written a second, in billions."""
    source, target = torch.zeros(num_bytes, dtype=torch.uint8), torch.zeros(num_bytes, dtype=torch.uint8)
    return 2 * num_bytes / min(_seconds(lambda: target.copy_(source)) for _ in range(repeats)) / 1e9


def _seconds(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def table(breakdown: Breakdown) -> str:
    """Write the breakdown as a Markdown table."""
    whole = breakdown.step_milliseconds
    lines = ["| Where a step's time goes | ms | of the step | GFLOP/s | of the best product |", "|---|---:|---:|---:|---:|"]
    for part in [*breakdown.parts, *breakdown.shapes]:
        name = part.name if part in breakdown.parts else f"&nbsp;&nbsp;{part.name}"
        rate = f"{part.gflops:,.0f} | {part.gflops / breakdown.peak_gflops:.0%}" if part.gflops else " | "
        lines.append(f"| {name} | {part.milliseconds:,.0f} | {part.milliseconds / whole:.0%} | {rate} |")
    lines += [
        f"| whole step | {whole:,.0f} | 100% | | |",
        "",
        f"Best product {breakdown.peak_gflops:,.0f} GFLOP/s, copying {breakdown.copy_gb_per_second:.1f} GB/s.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
