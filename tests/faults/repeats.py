"""`lorakeet reproduce` that is killed or stopped goes on with --resume, and comes to the same adapter."""

import random
import shutil
import signal
import time

from tests.faults.runs import Outcome, World


def campaign(world: World, num: int, seed: int = 0) -> Outcome:
    """Stop `num` repetitions at random times, in turn by kill -9 and by SIGTERM, and let each end."""
    outcome, dice = Outcome("reproduce is stopped"), random.Random(seed)
    num_cut = 0
    for case in range(num):
        run = world.root / f"again-{case}"
        arguments = ["reproduce", str(world.straight), "-o", str(run), "--resume"]
        child = world.command(arguments, run.name)
        time.sleep(dice.uniform(0.2, 1) * world.seconds)
        number = (signal.SIGKILL, signal.SIGTERM)[case % 2]
        child.signal(number)
        stopped = child.wait()
        num_cut += stopped != 0
        child = world.command(arguments, run.name)
        status = child.wait()
        outcome.num_cases += 1
        if stopped not in (0, -9, 130) or status != 0:
            outcome.misses.append(f"{case}: ended with {stopped}, then with {status}: {child.stderr[-300:]}")
        elif wrong := world.differs(run):
            outcome.misses.append(f"{case}: {wrong}")
        else:
            shutil.rmtree(run)
    outcome.note = f"{num_cut} of them before their end"
    return outcome
