"""What a checkpoint costs, and how long a resumed run takes to its first step, on the demo model.

`python -m benchmarks.checkpoint` begins a run (r=16 on all linear layers), stops it with SIGTERM after two checkpoints,
resumes it to its end, and prints one JSON object. A save is timed inside the run, with everything that belongs to it:
fsync, comparison, rename, reading back, deletion of the oldest.
"""

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAVE_STEPS = 100
"""What one save is set against: so many steps."""
_RUN = """
import json, sys, time
from lorakeet.cli import main
from lorakeet.rundir import checkpoint
save = checkpoint.save_checkpoint
def timed(*given, **options):
    began = time.perf_counter()
    path = save(*given, **options)
    size = sum(file.stat().st_size for file in path.iterdir())
    print("SAVED", time.perf_counter() - began, size, file=sys.stderr, flush=True)
    return path
checkpoint.save_checkpoint = timed
sys.exit(main.run(sys.argv[1:]))
"""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        run = Path(scratch) / "run"
        arguments = ["train", "demo", "demo", "-o", str(run), "--r", "16", "--batch-size", "8", "--max-steps", "8"]
        for key, value in (("save_steps", 2), ("logging_steps", 1), ("eval_strategy", "no")):
            arguments += ["--set", f"training_config.{key}={value}"]
        first = _start(arguments, Path(scratch) / "first.err")
        while not (run / "checkpoints" / "step-000004").exists():
            time.sleep(0.01)
        began = time.perf_counter()
        first.send_signal(signal.SIGTERM)
        first.wait()
        stopped = time.perf_counter() - began
        rows_before = len((run / "metrics.jsonl").read_text().splitlines())

        began = time.perf_counter()
        second = _start(["train", "--resume", "-o", str(run)], Path(scratch) / "second.err")
        while len((run / "metrics.jsonl").read_text().splitlines()) <= rows_before and second.poll() is None:
            time.sleep(0.01)
        resumed = time.perf_counter() - began
        second.wait()
        said = (Path(scratch) / "first.err").read_text() + (Path(scratch) / "second.err").read_text()
        saves = [line.split() for line in said.splitlines() if line.startswith("SAVED")]
        times = [json.loads(line)["elapsed_s"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [after - before for before, after in itertools.pairwise(times)]
        save_s, step_s = statistics.median(float(save[1]) for save in saves), statistics.median(steps)
        print(
            json.dumps(
                {
                    "checkpoint_bytes": int(saves[0][2]),
                    "save_s": round(save_s, 3),
                    "step_s": round(step_s, 3),
                    "cost_of_saving": round(save_s / (SAVE_STEPS * step_s), 5),
                    "stopped_after_s": round(stopped, 2),
                    "resume_to_first_step_s": round(resumed, 2),
                    "first_exit": first.returncode,
                    "second_exit": second.returncode,
                }
            )
        )


def _start(arguments: list[str], stderr: Path) -> subprocess.Popen[bytes]:
    with stderr.open("wb") as stream:
        return subprocess.Popen([sys.executable, "-c", _RUN, *arguments], stderr=stream, env=os.environ.copy())


if __name__ == "__main__":
    main()
