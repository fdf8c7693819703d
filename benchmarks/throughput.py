"""`make bench`: measure training speed and memory of lorakeet, TRL and the best tuned PEFT loop in one run.

First the gates (benchmarks.gates): where one fails nothing is measured and the exit status is 1. Then every system
trains in a process of its own on the same rows, one after the other, round after round, so that a drift of the machine
hits all alike; figures are medians of the rounds. The table and a chart are written to benchmarks/results/ as soon as
there is something new, so that an interrupted run keeps what it measured. Absolute figures are this machine's; the
ratios are what counts.

The goals compare with `peft`, the best that a loop over PEFT's model reaches; `peft-learned` goes further by taking
the model's forward apart, and is measured beside it. Last comes where a step's time goes (benchmarks.profile), so that on
another kind of CPU the next thing to speed up is read off.

Workloads that have a shape of their own (Q05, L1, G270) are measured when they are named, on a model of random weights
that is made for it.

usage: python -m benchmarks.throughput [--workloads W1 W3] [--adapters r16-all-linear] [--systems lorakeet peft]
       [--rounds 3] [--steps 3]
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import workloads
from benchmarks.chart import bar_chart
from lorakeet.dist import device
from lorakeet.machine.hardware import best_dtype, cpu_info
from lorakeet.models.config import DecoderConfig
from lorakeet.models.config_file import load_config
from lorakeet.models.registry import resolve

RESULTS = Path(__file__).parent / "results"
STARTED = datetime.datetime.now()
"""Part of the results' names, so that no run writes over another's."""
SYSTEMS = ("lorakeet", "trl", "peft", "peft-learned")
# The peers leave allocation to glibc, which returns pages to the kernel at every step; the tuned one is kept from it.
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}
LABELS = {
    "lorakeet": "lorakeet",
    "trl": "TRL SFTTrainer, defaults",
    "peft": "PEFT, tuned and compiled",
    "peft-learned": "the same, head on trained tokens only",
}
ADAPTERS = {"r16-all-linear": (16, "all-linear"), "r8-attention": (8, "attention")}

# What this project wants to reach: times the tokens/s of the tuned peer, share of the roofline, memory over TRL's or the
# tuned peer's. The roofline's share depends on how fast products are beside everything else, so each kind of CPU has its own.
ROOFLINE_GOALS = {"AMX": 0.65, "AVX512-BF16": 0.75, "AVX2": 0.75}
_OF_FAMILIES = {"peft": 1.5, "peft memory": 0.40}
GOALS: dict[str, dict[str, float]] = {
    "W1": {"peft": 1.7, "memory": 0.25},
    # Products of the shared prompt, which the roofline counts for every row, are done once.
    "W2": {"peft": 1.7, "memory": 0.25, "roofline": 1.10},
    "W3": {"peft": 1.7, "memory": 0.25},
    "W4": {"peft": 1.7, "memory": 0.25},
    "W5": {"memory": 0.25, "roofline": 0.85},
    "Q05": _OF_FAMILIES,
    "L1": _OF_FAMILIES,
    "G270": _OF_FAMILIES,
}
_MEMORY_OF = {"memory": ("trl", "TRL's"), "peft memory": ("peft", "tuned PEFT's")}
# For the first estimate of how long a run takes: share of the roofline each system reaches, seconds to start.
_USUAL_SHARE, _START_S = {"lorakeet": 0.6, "peft": 0.25, "peft-learned": 0.3, "trl": 0.1}, 15.0


@dataclass
class Case:
    """One workload with one kind of adapter, and what was measured of it so far."""

    workload: str
    adapters: str
    model: Path
    rows: Path
    runs: dict[str, list[dict]] = field(default_factory=dict)
    rooflines: list[float] = field(default_factory=list)
    profile: str = ""
    """Where a step's time goes, as a table."""

    def median(self, system: str, key: str) -> float:
        """Return the median of one figure over the rounds."""
        return statistics.median(run[key] for run in self.runs[system])

    @property
    def roofline(self) -> float:
        """Tokens a second that the model's matrix products alone would allow, attention's included."""
        return statistics.median(self.rooflines)

    def arguments(self) -> list[str]:
        """Return what `benchmarks.system` is called with after the system's name."""
        r, targets = ADAPTERS[self.adapters]
        return [str(self.model), str(self.rows), str(workloads.BATCH[self.workload]), str(r), targets]


def pass_gates(case: Case) -> dict:
    """Run the gates in a process of their own; end the whole run with status 1 where one fails."""
    r, targets = ADAPTERS[case.adapters]
    command = [sys.executable, "-m", "benchmarks.gates", str(case.model), str(case.rows), str(r), targets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        outcome = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        sys.exit(f"{case.workload} {case.adapters}: the gates ended without a verdict\n{done.stderr[-3000:]}")
    print(f"gates of {case.workload}, {case.adapters} ({outcome['rows']}):", file=sys.stderr)
    for gate in outcome["gates"]:
        verdict = "holds" if gate["holds"] else "FAILS"
        print(f"  {verdict}  {gate['name']}: {gate['value']:.8g} ({gate['limit']})", file=sys.stderr)
    if done.returncode != 0:
        sys.exit("A gate failed; no figure counts.")
    return outcome


def measure(system: str, case: Case) -> dict:
    """Train one system in a process of its own and read what it prints."""
    environment = os.environ | (TUNED if system.startswith("peft") else {}) | {"TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.system", system, *case.arguments()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"{system} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def roofline_tokens_per_second(config: DecoderConfig, num_tokens: int, learned_share: float, row_length: float = 0.0) -> float:
    """Time the model's own matrix products, in the type trained in; say how many tokens a second they would allow.

    Counted are the products no training can do without: every layer forward and, for its input's gradient, backward, the
    head forward and backward on learned rows, and attention's seven (two forward, five backward) over the half of the
    scores that the causal mask leaves, as fast as the fastest of the others. Adapters and everything elementwise come on top.
    row_length: the mean length of a row, weighted by its tokens.
    """
    D, F = config.hidden_size, config.intermediate_size
    q = config.num_attention_heads * config.head_dim
    qkv = q + 2 * config.num_key_value_heads * config.head_dim
    shapes = [(D, qkv), (q, D), (D, 2 * F), (F, D)]
    seconds = [_linear_seconds(num_tokens, *shape) for shape in shapes]
    flops_per_second = max(4 * num_tokens * one * other / took for (one, other), took in zip(shapes, seconds, strict=True))
    attention = 7 * num_tokens * row_length * q / flops_per_second
    head = _linear_seconds(max(1, int(num_tokens * learned_share)), D, config.vocab_size)
    return num_tokens / ((sum(seconds) + attention) * config.num_hidden_layers + head)


def _linear_seconds(rows: int, width_in: int, width_out: int, repeats: int = 7, warm_up: int = 2) -> float:
    """Time the two products of a frozen linear layer, forward and backward, into memory that is there already."""
    where = {"dtype": best_dtype(device()), "device": device()}
    x, y = torch.randn(rows, width_in).to(**where), torch.randn(rows, width_out).to(**where)
    weight = torch.randn(width_out, width_in).to(**where)
    times = []
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        torch.mm(x, weight.T, out=y)
        torch.mm(y, weight, out=x)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warm_up:])


def case_roofline(case: Case) -> float:
    """Measure the roofline for steps of this case's size."""
    rows = workloads.read_rows(case.rows)
    lengths = [len(row.input_ids) for row in rows]
    tokens = sum(lengths)
    share = sum(row.num_supervised_tokens for row in rows) / tokens
    mean_step = tokens * workloads.BATCH[case.workload] // len(rows)
    row_length = sum(length**2 for length in lengths) / tokens
    return roofline_tokens_per_second(load_config(case.model), mean_step, share, row_length)


def estimate_seconds(case: Case, systems: list[str]) -> float:
    """Guess how long one round of a case takes."""
    tokens = sum(len(row.input_ids) for row in workloads.read_rows(case.rows))
    return sum(tokens / (case_roofline(case) * _USUAL_SHARE[system]) + _START_S for system in systems)


def table(cases: list[Case]) -> str:
    """Write the figures as a Markdown table."""
    lines = [
        "| Workload | Adapters | System | tokens/s | learned tokens/s | ours / this | peak memory | ours / this | "
        "first step | compiling |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in cases:
        head = f"| {case.workload} | {case.adapters} "
        for system in case.runs:
            speed = case.median("lorakeet", "tokens_per_second") / case.median(system, "tokens_per_second")
            memory = case.median("lorakeet", "peak_memory_bytes") / case.median(system, "peak_memory_bytes")
            lines.append(
                f"{head}| {LABELS[system]} | {case.median(system, 'tokens_per_second'):,.0f} | "
                f"{case.median(system, 'supervised_tokens_per_second'):,.0f} | {speed:.2f}x | "
                f"{case.median(system, 'peak_memory_bytes') / 1e9:.2f} GB | {memory:.0%} | "
                f"{case.median(system, 'first_step_s'):.1f} s | {case.median(system, 'compile_s'):.1f} s |"
            )
        share = case.median("lorakeet", "tokens_per_second") / case.roofline
        lines.append(f"{head}| GEMM roofline | {case.roofline:,.0f} | | {share:.0%} of it | | | | |")
    return "\n".join(lines)


def goal_table(cases: list[Case]) -> str:
    """Write the goals beside what was reached."""
    kind = kind_of_cpu()
    lines = [f"| Workload | Adapters | Goal on {kind} | Reached | |", "|---|---|---:|---:|---|"]
    for case in cases:
        ours = case.median("lorakeet", "tokens_per_second")
        for key, goal in goals_of(case.workload).items():
            if key == "roofline":
                reached, is_met = ours / case.roofline, ours / case.roofline >= goal
                words = f"≥ {goal:.0%} of the roofline | {reached:.0%}"
            elif key in _MEMORY_OF and _MEMORY_OF[key][0] in case.runs:
                peer, whose = _MEMORY_OF[key]
                reached = case.median("lorakeet", "peak_memory_bytes") / case.median(peer, "peak_memory_bytes")
                is_met, words = reached <= goal, f"≤ {goal:.0%} of {whose} peak memory | {reached:.0%}"
            elif key in case.runs:
                reached = ours / case.median(key, "tokens_per_second")
                is_met, words = reached >= goal, f"≥ {goal:g}× {LABELS[key]} | {reached:.2f}×"
            else:
                continue
            lines.append(f"| {case.workload} | {case.adapters} | {words} | {'reached' if is_met else '**not reached**'} |")
    return "\n".join(lines)


def goals_of(workload: str) -> dict[str, float]:
    """Return what a workload is to reach here; the share of the roofline is asked of the layout that it was set for."""
    on_this_cpu = {} if workload in workloads.SHAPES else {"roofline": ROOFLINE_GOALS[kind_of_cpu()]}
    return on_this_cpu | GOALS[workload]


def kind_of_cpu() -> str:
    """Name the fastest units for matrix products that this CPU has."""
    flags = set(" ".join(cpu_info("flags")).split())
    return "AMX" if "amx_bf16" in flags else "AVX512-BF16" if "avx512_bf16" in flags else "AVX2"


def where_time_goes(case: Case) -> str:
    """Profile a step of ours in a process of its own; return its table."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.profile", *case.arguments()], capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else f"no profile: {done.stderr.strip().splitlines()[-1:]}"


def write_results(cases: list[Case], options: argparse.Namespace, gates: list[str]) -> str:
    """Write the dated table and chart of what is measured so far; return the table's text."""
    measured = [case for case in cases if case.rooflines]
    stem = f"{STARTED:%Y-%m-%d-%H%M}-throughput"
    groups = {
        f"{case.workload}\n{workloads.TITLES[case.workload]}\n{case.adapters}": {
            LABELS[system]: case.median(system, "tokens_per_second") for system in case.runs
        }
        | {"what the matrix multiplications alone allow": case.roofline}
        for case in measured
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    rounds = sorted({len(case.rooflines) for case in measured})
    text = "\n\n".join(
        [
            f"# Throughput, {STARTED:%Y-%m-%d %H:%M}",
            f"{machine()}; commit {commit.stdout.strip() or 'unknown'}; {models_of(measured, options)}, "
            f"{str(best_dtype('cpu')).removeprefix('torch.')}; text from "
            f"{'GSM8K' if workloads.gsm8k_file() else 'the demo rows'}; medians of {' to '.join(map(str, rounds))} rounds "
            f"of {options.steps} timed steps each. Command: `python -m benchmarks.throughput {' '.join(sys.argv[1:])}`",
            f"Gates, all of which hold: {'; '.join(gates)}.",
            f"![tokens a second]({stem}.svg)",
            table(measured),
            goal_table(measured),
            *(f"## {case.workload}, {case.adapters}\n\n{case.profile}" for case in measured if case.profile),
            "",
        ]
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{stem}.md").write_text(text, encoding="utf-8")
    (RESULTS / f"{stem}.svg").write_text(
        bar_chart(f"Training speed, {models_of(measured, options)}: tokens a second, more is better", "tokens/s", groups),
        encoding="utf-8",
    )
    return text


def models_of(cases: list[Case], options: argparse.Namespace) -> str:
    """Say which models were measured."""
    named = [] if all(case.workload in workloads.SHAPES for case in cases) else [f"model {options.model}"]
    random = {case.workload: workloads.TITLES[case.workload] for case in cases if case.workload in workloads.SHAPES}
    return ", ".join([*named, *(f"random weights in the {title}" for title in random.values())])


def machine() -> str:
    """Describe the machine in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(workloads.WORKLOADS)
    usual = [name for name in names if name not in workloads.SHAPES]
    parser.add_argument("--workloads", nargs="+", default=usual, choices=names)
    parser.add_argument("--adapters", nargs="+", default=list(ADAPTERS), choices=list(ADAPTERS))
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of every system in every round")
    parser.add_argument("--model", default="demo")
    return parser.parse_args()


def main() -> None:
    """Pass the gates, measure, print, and write a dated table."""
    options = parse()
    systems = ["lorakeet", *(system for system in options.systems if system != "lorakeet")]
    model = resolve(options.model)
    with tempfile.TemporaryDirectory() as folder:
        cases = []
        for workload, adapters in itertools.product(options.workloads, options.adapters):
            rows = Path(folder) / f"{workload}.json"
            if not rows.exists():
                workloads.write_rows(workload, options.steps, model, rows)
            cases.append(Case(workload, adapters, workloads.model_directory(workload, model, Path(folder)), rows))
        guess = options.rounds * sum(estimate_seconds(case, systems) for case in cases)
        print(f"{len(cases)} cases, about {guess / 60:.0f} minutes after the gates", file=sys.stderr)
        gates = [f"{case.workload} {case.adapters} on {pass_gates(case)['rows']}" for case in cases]
        text = ""
        for turn, case in itertools.product(range(options.rounds), cases):
            case.rooflines.append(case_roofline(case))
            for system in systems:
                case.runs.setdefault(system, []).append(measure(system, case))
                speed = case.runs[system][-1]["tokens_per_second"]
                print(f"  {turn + 1} {case.workload} {case.adapters} {system}: {speed:.0f} tokens/s", file=sys.stderr)
            text = write_results(cases, options, gates)
        for case in cases:
            case.profile = where_time_goes(case)
            text = write_results(cases, options, gates)
    print(text)


if __name__ == "__main__":
    main()
