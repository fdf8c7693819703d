"""`make bench`: measure training speed and memory of lorakeet, TRL and the best tuned PEFT loop in one run.

Every system trains in a process of its own on the same rows, one after the other, round after round, so that a drift
of the machine hits all alike; figures are medians of the rounds. The table and a chart are written to
benchmarks/results/. Absolute figures are this machine's; the ratios are what counts.

usage: python -m benchmarks.throughput [--workloads W1 W3] [--systems lorakeet trl peft] [--rounds 3]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import workloads
from lorakeet.models.config import Phi3Config
from lorakeet.models.registry import resolve
from lorakeet.ops.hardware import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
SYSTEMS = ("lorakeet", "trl", "peft")
# The peers leave allocation to glibc, which returns pages to the kernel at every step; the tuned one is kept from it.
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}
LABELS = {"lorakeet": "lorakeet", "trl": "TRL SFTTrainer, defaults", "peft": "PEFT, tuned and compiled"}


def measure(system: str, model: Path, rows: Path, batch: int, r: int, targets: str) -> dict:
    """Train one system in a process of its own and read what it prints."""
    environment = os.environ | (TUNED if system == "peft" else {}) | {"TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.system", system, str(model), str(rows), str(batch), str(r), targets]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"{system} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def roofline_tokens_per_second(config: Phi3Config, num_tokens: int, learned_share: float) -> float:
    """Time the model's own matrix products in bf16 and say how many tokens a second they alone would allow.

    Counted are the products no training can do without: every layer forward and, for its input's gradient, backward,
    and the head forward and backward on learned rows. Adapters, attention and everything elementwise come on top.
    """
    keep_freed_memory()  # else every product would first pay for fresh pages
    D, F = config.hidden_size, config.intermediate_size
    qkv = D + 2 * config.num_key_value_heads * config.head_dim
    shapes = [(D, qkv), (D, D), (D, 2 * F), (F, D)]
    seconds = 0.0
    for width_in, width_out in shapes:
        x = torch.randn(num_tokens, width_in).bfloat16()
        weight = torch.randn(width_out, width_in).bfloat16()
        grad = torch.randn(num_tokens, width_out).bfloat16()
        for product in (lambda x=x, w=weight: x @ w.T, lambda g=grad, w=weight: g @ w):
            times = []
            for _ in range(7):
                start = time.perf_counter()
                product()
                times.append(time.perf_counter() - start)
            seconds += statistics.median(times[2:]) * config.num_hidden_layers
    learned = max(1, int(num_tokens * learned_share))
    head, hidden = torch.randn(config.vocab_size, D).bfloat16(), torch.randn(learned, D).bfloat16()
    logits = torch.randn(learned, config.vocab_size).bfloat16()
    for product in (lambda: hidden @ head.T, lambda: logits @ head):
        product()
        start = time.perf_counter()
        product()
        seconds += time.perf_counter() - start
    return num_tokens / seconds


def run_workload(name: str, systems: list[str], model: Path, rounds: int, r: int, targets: str) -> dict:
    """Measure all systems on one workload, interleaved."""
    results: dict[str, list[dict]] = {system: [] for system in systems}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        workloads.write_rows(name, workloads.ROWS[name], model, rows)
        examples = workloads.read_rows(rows)
        for _ in range(rounds):
            for system in systems:
                results[system].append(measure(system, model, rows, workloads.BATCH[name], r, targets))
                print(f"  {name} {system}: {results[system][-1]['tokens_per_second']:.0f} tokens/s", file=sys.stderr)
    tokens = sum(len(row.input_ids) for row in examples)
    share = sum(row.num_supervised_tokens for row in examples) / tokens
    mean_step = tokens * workloads.BATCH[name] // len(examples)
    return {
        "systems": {system: _medians(runs) for system, runs in results.items()},
        "roofline": roofline_tokens_per_second(Phi3Config.from_directory(model), mean_step, share),
    }


def _medians(runs: list[dict]) -> dict[str, float]:
    keys = ("tokens_per_second", "supervised_tokens_per_second", "peak_memory_bytes", "first_step_s")
    return {key: statistics.median(run[key] for run in runs) for key in keys}


def table(measured: dict[str, dict]) -> str:
    """Write the figures as a Markdown table."""
    lines = [
        "| Workload | System | tokens/s | learned tokens/s | ours / this | peak memory | ours / this | first step |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, result in measured.items():
        ours = result["systems"]["lorakeet"]
        for system, figures in result["systems"].items():
            speed = ours["tokens_per_second"] / figures["tokens_per_second"]
            memory = ours["peak_memory_bytes"] / figures["peak_memory_bytes"]
            lines.append(
                f"| {name} | {LABELS[system]} | {figures['tokens_per_second']:,.0f} | "
                f"{figures['supervised_tokens_per_second']:,.0f} | {speed:.2f}x | "
                f"{figures['peak_memory_bytes'] / 2**30:.2f} GiB | {memory:.0%} | {figures['first_step_s']:.1f} s |"
            )
        share = ours["tokens_per_second"] / result["roofline"]
        lines.append(f"| {name} | GEMM roofline | {result['roofline']:,.0f} | | {share:.0%} of it | | | |")
    return "\n".join(lines)


def machine() -> str:
    """Describe the machine in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def main() -> None:
    """Measure, print, and write a dated table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["W1"], choices=list(workloads.WORKLOADS))
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--targets", default="all-linear", choices=["all-linear", "attention"])
    options = parser.parse_args()
    systems = ["lorakeet", *(system for system in options.systems if system != "lorakeet")]
    model = resolve(options.model)
    measured = {
        name: run_workload(name, systems, model, options.rounds, options.r, options.targets)
        for name in options.workloads
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    rows = "GSM8K" if workloads.gsm8k_file() else "the demo's rows"
    text = (
        f"# Throughput, {datetime.date.today()}\n\n{machine()}; commit {commit.stdout.strip() or 'unknown'}; model "
        f"{options.model}, bf16, r={options.r}, {options.targets}; text from {rows}; medians of "
        f"{options.rounds} rounds\n"
        f"Command: `python -m benchmarks.throughput {' '.join(sys.argv[1:])}`\n\n{table(measured)}\n"
    )
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{datetime.date.today()}-throughput.md").write_text(text)


if __name__ == "__main__":
    main()
