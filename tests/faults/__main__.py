"""`python -m tests.faults [PART ...]`: throw every fault at it and print one table; exit 1 on any miss.

LORAKEET_FAULTS_SCALE=0.1 does a tenth of each part; the names of parts choose some of them.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import damage, each_call, exports, full_disk, kills, power_loss, repeats, reports, server, signals
from tests.faults.runs import SHORT, build_world


def main(chosen: list[str]) -> int:
    """Run the chosen parts, or all, and return the exit status."""
    scale = float(os.environ.get("LORAKEET_FAULTS_SCALE", "1"))
    stride = max(1, round(1 / scale))

    def sized(num: int) -> int:
        return max(1, round(num * scale))

    with tempfile.TemporaryDirectory() as scratch:
        world, short = build_world(Path(scratch) / "long"), build_world(Path(scratch) / "short", SHORT)
        parts = {
            "kills": lambda: kills.campaign(world, sized(200)),
            "signals": lambda: signals.campaign(world, sized(50)),
            "phases": lambda: signals.phase_campaign(world),
            "each-kill": lambda: each_call.kill_campaign(short, stride),
            "each-error": lambda: each_call.error_campaign(short, stride),
            "full-disk": lambda: full_disk.campaign(short, sized(12)),
            "damage": lambda: damage.campaign(world, sized(500)),
            "power-loss": lambda: power_loss.campaign(world, sized(1000)),
            "exports": lambda: exports.campaign(short, stride, sized(10)),
            "server": lambda: server.campaign(world, sized(20)),
            "reports": lambda: reports.campaign(world, sized(50)),
            "repeats": lambda: repeats.campaign(world, sized(20)),
        }
        missed = False
        print(f"A run takes {world.seconds:.2f} s, a short one {short.seconds:.2f} s.\n")
        print(f"| {'fault':40} | {'cases':>5} | {'passed':>6} | seconds | note\n|---|---:|---:|---:|---", flush=True)
        for name in chosen or parts:
            began = time.perf_counter()
            outcome = parts[name]()
            passed, seconds = outcome.num_cases - len(outcome.misses), time.perf_counter() - began
            row = f"| {outcome.kind:40} | {outcome.num_cases:5} | {passed:6} | {seconds:7.0f} | {outcome.note}"
            print(row, flush=True)
            for miss in outcome.misses:
                print(f"    MISSED {miss}", flush=True)
            missed |= bool(outcome.misses)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
