"""How much two processes cost against one with as many threads: the same rows, the same steps, the same machine.

    python -m benchmarks.processes --rounds 2 [--data gsm8k_train.jsonl]

data in: the demo's model, and its rows or others → out: tokens per second of `lorakeet train` as one process with N
threads and of `torchrun --nproc-per-node N -m lorakeet train` with one thread each, interleaved, as medians over steps
past the first two, which compile. Evaluation is off.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def tokens_per_second(num_processes: int, num_threads: int, *, data: str, rows: int, steps: int) -> float:
    """Train the demo with `rows` conversations a step, shared by the processes; give the median speed."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
        values = {
            "logging_steps": 1,
            "eval_strategy": "no",
            "bf16": "true",
            "per_device_train_batch_size": rows // num_processes,
        }
        command = [sys.executable, *(launcher if num_processes > 1 else []), "-m", "lorakeet", "train", "demo", data]
        command += ["-o", str(run), "--max-steps", str(steps)]
        command += [part for key, value in values.items() for part in ("--set", f"training_config.{key}={value}")]
        environment = os.environ | {"OMP_NUM_THREADS": str(num_threads), "TOKENIZERS_PARALLELISM": "false"}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return statistics.median(row["tokens_per_second"] for row in logged if row["step"] > 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16, help="conversations a step, over all processes")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    what = {"data": options.data, "rows": options.rows, "steps": options.steps}
    one, several = [], []
    for _ in range(options.rounds):
        one.append(tokens_per_second(1, options.cores, **what))
        several.append(tokens_per_second(options.cores, 1, **what))
        print(f"one process: {one[-1]:.0f} tokens/s; {options.cores} processes: {several[-1]:.0f}", flush=True)
    ratio = statistics.median(several) / statistics.median(one)
    print(f"medians: {statistics.median(one):.0f} and {statistics.median(several):.0f}, {ratio:.2f} times")


if __name__ == "__main__":
    main()
