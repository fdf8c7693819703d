"""How much slower `evaluate` and `chat` are beside a run that trains: whole commands, alone and beside it, on one machine.

    python -m benchmarks.beside RUN [--rounds 2]

data in: a finished run of the demo's → out: seconds of each command alone and beside `lorakeet train demo demo`, as medians,
and their ratio, as a Markdown table. With as many cores as jobs want at once, half the speed is the best that can be had.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.throughput import machine

COMMANDS = {
    "evaluate, 12 rows": ["evaluate", "RUN", "--max-rows", "12", "--no-base", "--max-new-tokens", "64"],
    "chat --prompt": ["chat", "RUN", "--prompt", "Remind me to water the plants on March 14 at 3 pm", "--max-new-tokens", "64"],
}


def seconds(command: list[str]) -> float:
    """Run a command of Lorakeet's and return how long it took."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lorakeet", *command], check=True, capture_output=True)
    return time.perf_counter() - begin


@contextmanager
def training() -> Iterator[None]:
    """Train the demo's model in the background; begin once it has taken five steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["train", "demo", "demo", "-o", f"{folder}/run", "--set", "training_config.logging_steps=1"]
        with subprocess.Popen([sys.executable, "-m", "lorakeet", *command], stderr=subprocess.DEVNULL) as process:
            try:
                while _steps(Path(folder) / "run" / "metrics.jsonl") < 5:
                    assert process.poll() is None, "the training ended"
                    time.sleep(1)
                yield
                assert process.poll() is None, "the training ended before the commands did"
            finally:
                process.kill()


def _steps(metrics: Path) -> int:
    """Count the optimizer steps that were logged."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return sum("loss" in json.loads(line) for line in lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    commands = {name: [options.run if word == "RUN" else word for word in words] for name, words in COMMANDS.items()}
    alone = {name: [seconds(command) for _ in range(options.rounds)] for name, command in commands.items()}
    with training():
        beside = {name: [seconds(command) for _ in range(options.rounds)] for name, command in commands.items()}
    print(machine())
    print("| Command | alone | beside a training run | ratio |\n|---|---:|---:|---:|")
    for name in commands:
        before, after = statistics.median(alone[name]), statistics.median(beside[name])
        print(f"| {name} | {before:.1f} s | {after:.1f} s | {after / before:.1f} |")


if __name__ == "__main__":
    main()
