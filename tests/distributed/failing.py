"""The command, in which process 1 comes to grief in its third step: `failing.py HOW train ...`."""

import os
import signal
import sys

from lorakeet import dist
from lorakeet.cli import main
from lorakeet.errors import TrainingError
from lorakeet.training import loop as trainer

how, *arguments = sys.argv[1:]
step, count = trainer.train_step, 0


def failing_step(*args, **options):
    """Fail in process 1, wait for it in the others."""
    global count
    count += 1
    if count == 3 and dist.rank() == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise TrainingError("E-TRAIN-99", "seeded failure", place=f"process {dist.rank()}", fix="None needed")
    return step(*args, **options)


trainer.train_step = failing_step
sys.exit(main.run(arguments))
