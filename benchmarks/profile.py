"""Say where a training step's time goes, by PyTorch's profiler.

usage: python -m benchmarks.profile MODEL_DIR ROWS.json BATCH [R] [TARGETS]
The rows are those that `benchmarks.workloads.write_rows` writes. Warm-up steps come before; the profile is of the rest.
"""

import sys
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from benchmarks import system
from benchmarks.workloads import WARM_UP, read_rows


def main() -> None:
    """Train, profile, print the 25 most expensive operations."""
    model_dir, rows, batch, *rest = sys.argv[1:]
    r, targets = (rest + ["16", "all-linear"][len(rest) :])[:2]
    with profile(activities=[ProfilerActivity.CPU], schedule=schedule(wait=WARM_UP - 1, warmup=1, active=1000)) as profiler:
        take_step = system._step

        def counted(*given: object) -> dict:
            profiler.step()
            return take_step(*given)

        system._step = counted
        system.lorakeet(Path(model_dir), read_rows(Path(rows)), int(batch), int(r), system.TARGETS[targets])
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    main()
