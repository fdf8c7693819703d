"""`make gpu`: what a CUDA card has to show, in eight minutes: proofs, tests, and speed and memory of training at full size.

Every part is a process with a time limit of its own; one that fails or takes too long is recorded, and the rest goes on. The
model is a Phi-3-mini of full size with random weights, so nothing is downloaded; TRL and Unsloth train the same rows if they
can be imported. The result is one JSON file and the same as text, under benchmarks/results.

usage: python -m benchmarks.gpu [--dry-run] [--parts NAME ...] [--model DIR] [--output FILE.json]

`--dry-run` goes through every part with a tiny model, on a CPU too: it shows that the script works, and measures nothing.
"""

import argparse
import datetime
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.make_full_size import PHI3_MINI, make
from benchmarks.throughput import RESULTS
from benchmarks.workloads import WARM_UP
from lorakeet.rundir.versions import commit, versions

SECONDS = 480
"""Longest that all parts take together."""
TINY = replace(
    PHI3_MINI, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
)
SYSTEMS = {"lorakeet": "lorakeet", "trl": "trl", "unsloth": "unsloth"}
"""What is measured beside each other, and the package that each needs."""
NOTHING = "NOTHING WAS MEASURED ON CUDA: this is a dry run that shows that the script works."


@dataclass
class Outcome:
    """What came of a part."""

    name: str
    state: str
    """"done", "failed", "too slow" or "left out"."""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    said: str = ""
    """The end of what it said, if it is not done."""


@dataclass(frozen=True)
class Part:
    """A command with its time limit, and how its figures are read."""

    name: str
    command: list[str]
    seconds: int
    read: Callable[[str], dict[str, Any]]
    needs: str | None = None
    """A package without which it is left out."""


def last_json(text: str) -> dict[str, Any]:
    """Return the last JSON object that stands alone on a line."""
    found = [line for line in text.splitlines() if line.startswith("{")]
    return json.loads(found[-1]) if found else {}


def last_line(text: str) -> dict[str, Any]:
    """Return the last line that says something."""
    lines = [line for line in text.splitlines() if line.strip()]
    return {"said": lines[-1].strip("= ") if lines else ""}


def parts(model: Path, rows: Path, *, tiny: bool) -> list[Part]:
    """List what is done, the most telling first."""
    python, batch = sys.executable, "2"
    full_size = [python, "-m", "benchmarks.full_size", "lorakeet", str(model), "--tokens", "512" if tiny else "4096"]
    full_size += ["--steps", "2" if tiny else "6"]
    tests = [python, "-m", "pytest", "-m", "gpu", *(["tests/ops/test_attention.py"] if tiny else [])]
    verify = [python, "-m", "lorakeet", "verify", "demo", "--json", *(["--quick"] if tiny else [])]
    compared = [
        Part(
            f"beside each other: {name}",
            [python, "-m", "benchmarks.system", name, str(model), str(rows), batch, "16", "all-linear"],
            70,
            last_json,
            package,
        )
        for name, package in SYSTEMS.items()
    ]
    return [
        Part("full size, LoRA", [*full_size, "--bits", "16"], 70, last_json),
        Part("full size, QLoRA", [*full_size, "--bits", "4"], 90, last_json, "bitsandbytes"),
        Part("verify", verify, 120, last_json),
        Part("tests marked gpu", tests, 120, last_line),
        *compared,
    ]


def run(part: Part, seconds: float) -> Outcome:
    """Run a part for so many seconds at most."""
    if part.needs is not None and importlib.util.find_spec(part.needs) is None:
        return Outcome(part.name, "left out", said=f"{part.needs} is not installed")
    if seconds < 1:
        return Outcome(part.name, "left out", said="the time was over")
    began = time.perf_counter()
    child = subprocess.Popen(
        part.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
        return Outcome(part.name, "too slow", seconds, said=(err or out)[-600:])
    except KeyboardInterrupt:  # a session of its own hears nothing of Ctrl-C
        os.killpg(child.pid, signal.SIGKILL)
        raise
    figures: dict[str, Any] = {}
    try:
        figures = part.read(out)
    except ValueError:
        err += out
    state = "done" if child.returncode == 0 else "failed"
    return Outcome(part.name, state, time.perf_counter() - began, figures, "" if state == "done" else (err or out)[-600:])


def write_random_rows(target: Path, num_rows: int, lengths: tuple[int, int]) -> None:
    """Write rows of random ids, of different lengths, half of each trained on, as `benchmarks.system` reads them."""
    dice = random.Random(0)
    sizes = [dice.randint(*lengths) for _ in range(num_rows)]
    rows = [([dice.randint(3, 31_000) for _ in range(size)], [(size // 2, size)]) for size in sizes]
    target.write_text(json.dumps(rows))


def as_text(result: dict[str, Any]) -> str:
    """Write a result for people."""
    lines = [f"# {result['title']}", ""]
    lines += [f"**{NOTHING}**", ""] if not result["measured_on_cuda"] else []
    lines += [f"- {key}: {value}" for key, value in result["machine"].items()]
    lines += ["", "| Part | | seconds | |", "|---|---|---:|---|"]
    for part in result["parts"]:
        shown = {key: value for key, value in part["figures"].items() if isinstance(value, int | float | str)}
        told = ", ".join(f"{key} {_number(value)}" for key, value in shown.items() if key in _SHOWN) or part["said"]
        lines.append(f"| {part['name']} | {part['state']} | {part['seconds']:.0f} | {' '.join(told.split())[-300:]} |")
    return "\n".join(lines) + "\n"


_SHOWN = (
    "tokens_per_second",
    "supervised_tokens_per_second",
    "peak_memory_bytes",
    "share_of_roofline",
    "first_step_s",
    "said",
    "passed",
)


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Go through the parts and keep the result after each."""
    on_cuda, tiny = torch.cuda.is_available() and not options.dry_run, options.dry_run
    result: dict[str, Any] = {
        "title": "A dry run of make gpu" if tiny else f"Lorakeet on {torch.cuda.get_device_name()}",
        "measured_on_cuda": on_cuda,
        "machine": versions() | {"commit": commit() or "unknown", "time": f"{datetime.datetime.now():%Y-%m-%d %H:%M}"},
        "parts": [],
    }
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lorakeet-gpu-") as folder:
        model, rows = options.model or Path(folder) / "model", Path(folder) / "rows.json"
        if options.model is None:
            make(model, TINY if tiny else PHI3_MINI, _tokenizer())
        write_random_rows(rows, (WARM_UP + (1 if tiny else 8)) * 2, (20, 60) if tiny else (200, 1400))
        chosen = [one for one in parts(model, rows, tiny=tiny) if not options.parts or one.name in options.parts]
        for part in chosen:
            print(f"{part.name} ...", file=sys.stderr, flush=True)
            # A dry run is about whether it works, on machines of any speed.
            left = part.seconds * 5 if tiny else min(part.seconds, SECONDS - (time.perf_counter() - began))
            result["parts"].append(asdict(run(part, left)))
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            options.output.with_suffix(".md").write_text(as_text(result), encoding="utf-8")
        if options.model is None:
            shutil.rmtree(model, ignore_errors=True)
    return result


def _tokenizer() -> Path | None:
    """Return a tokenizer for TRL: the demo's, if it is installed."""
    from lorakeet.errors import LorakeetError
    from lorakeet.models.registry import resolve

    try:
        return resolve("demo")
    except LorakeetError:
        return None


def main() -> int:
    """Read the command line, measure, and print the result as text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="go through everything with a tiny model; measures nothing")
    parser.add_argument("--parts", nargs="+", help="names of parts; all if none is named")
    parser.add_argument("--model", type=Path, help="a Phi-3-mini that is there already")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{datetime.datetime.now():%Y-%m-%d-%H%M}-gpu.json")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        print("There is no CUDA device, so nothing is measured. Try the script itself with --dry-run.", file=sys.stderr)
        return 2
    if options.dry_run:
        os.environ.setdefault("LORAKEET_COMPILE", "0")  # compiling would take minutes, for nothing
    result = measure(options)
    print(as_text(result), end="")
    print(f"\nWritten to {options.output} and {options.output.with_suffix('.md')}")
    return int(any(part["state"] in ("failed", "too slow") for part in result["parts"]))


if __name__ == "__main__":
    sys.exit(main())
