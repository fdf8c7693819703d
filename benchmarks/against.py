"""Is this checkout as fast and as small as another one: both train the same rows, taking turns step by step.

    git worktree add ../before v0.3.0
    python -m benchmarks.against ../before [--workloads W1 W4] [--steps 4]

data in: the directory of the other checkout → out: for each workload the other's and this one's tokens a second, the
median over steps of the ratio between them, and both peaks of memory, as a Markdown table.

A step of one is followed by the same step of the other, so that a machine whose speed drifts hits both alike: ratios
of neighbouring steps scatter by a percent where those of whole runs scatter by ten. Who goes first changes each time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import workloads
from benchmarks.throughput import ADAPTERS, machine
from lorakeet.models.registry import resolve

HERE = Path(__file__).parents[1]
# The checkout's own `benchmarks.system`, made to wait for a line of standard input before each step.
_PACED = """
import sys
from benchmarks import system
batches = system._batches
def paced(*arguments, **options):
    for part in batches(*arguments, **options):
        print("ready", flush=True)
        sys.stdin.readline()
        yield part
system._batches = paced
system.main()
"""


class Trainer:
    """A checkout that trains in a process of its own, a step at a time."""

    def __init__(self, checkout: Path, arguments: list[str]) -> None:
        paths = {"PYTHONPATH": os.pathsep.join([str(checkout / "src"), str(checkout)]), "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, "-c", _PACED, "lorakeet", *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.seconds: list[float] = []
        self.process = subprocess.Popen(command, cwd=checkout, env=os.environ | paths, **pipes)
        self.wait()

    def wait(self) -> str:
        """Return the next line it prints: "ready" before each step, at the end its figures."""
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the trainer ended with status {self.process.wait()}")
        return line

    def step(self) -> str:
        """Let it train one step and return the line that follows."""
        start = time.perf_counter()
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.wait()
        self.seconds.append(time.perf_counter() - start)
        return line


def compare(before: Path, workload: str, steps: int, model: Path) -> str:
    """Train one workload in both and return the table's row."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        workloads.write_rows(workload, steps, model, rows)
        r, targets = ADAPTERS["r16-all-linear"]
        shaped = workloads.model_directory(workload, model, Path(folder))
        arguments = [str(shaped), str(rows), str(workloads.BATCH[workload]), str(r), targets]
        pair = [Trainer(checkout, arguments) for checkout in (before, HERE)]
        for turn in range(workloads.WARM_UP + steps):
            order = pair if turn % 2 else pair[::-1]
            lines = {id(trainer): trainer.step() for trainer in order}
        old, new = (json.loads(lines[id(trainer)]) for trainer in pair)
    times = zip(*(trainer.seconds[workloads.WARM_UP :] for trainer in pair), strict=True)
    speeds = [then / now for then, now in times]
    size = new["peak_memory_bytes"] / old["peak_memory_bytes"]
    return (
        f"| {workload} | {old['tokens_per_second']:,.0f} | {new['tokens_per_second']:,.0f} | "
        f"{statistics.median(speeds):.3f} ({min(speeds):.3f} to {max(speeds):.3f}) | "
        f"{old['peak_memory_bytes'] / 1e9:.2f} GB | {new['peak_memory_bytes'] / 1e9:.2f} GB | {size:.3f} | "
        f"{max(abs(a - b) for a, b in zip(old['losses'], new['losses'], strict=True)):.1e} |"
    )


def main() -> None:
    """Compare each workload and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="directory of the other checkout")
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3", "W4"], choices=list(workloads.WORKLOADS))
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    print(machine())
    print("| Workload | before, tokens/s | now, tokens/s | now / before | memory before | now | ratio | losses differ by |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for workload in options.workloads:
        print(compare(options.before.resolve(), workload, options.steps, resolve("demo")), flush=True)


if __name__ == "__main__":
    main()
