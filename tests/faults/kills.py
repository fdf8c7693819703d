"""kill -9 at random times: every run goes on unattended and ends bit-equal."""

import random
import shutil
import time

from tests.faults.runs import Outcome, World


def campaign(world: World, num: int, seed: int = 0) -> Outcome:
    """Kill `num` runs, each once or twice at random times, and let them end."""
    outcome, dice = Outcome("kill -9 at random times"), random.Random(seed)
    resumed = 0
    for case in range(num):
        run = world.root / f"kill-{case}"
        for _ in range(dice.choice((1, 1, 2))):
            child = world.start(run)
            time.sleep(dice.uniform(0, world.seconds))
            child.kill()
        resumed += any((run / "checkpoints").glob("step-*"))
        wrong = world.finish(run)
        outcome.num_cases += 1
        if wrong:
            outcome.misses.append(f"kill {case}: {wrong}")
        else:
            shutil.rmtree(run)
    outcome.note = f"{resumed} of them had a checkpoint to go on from"
    return outcome
