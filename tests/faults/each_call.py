"""A run that dies at its nth call to the disk, and one whose nth call fails, for n = 1, 2, … until a run is clean."""

import errno
import shutil
from pathlib import Path

from tests.faults.disk import DieAt, FailAt
from tests.faults.runs import Outcome, World


def kill_campaign(world: World, stride: int = 1) -> Outcome:
    """Kill a run in place of every `stride`-th write, fsync, rename, mkdir and unlink."""
    outcome = Outcome("kill at every write, fsync and rename")
    nth = 1
    while True:
        run = world.root / f"die-{nth}"
        status = world.start(run, DieAt(run, nth)).wait()
        if status == 0:  # it came through: there were fewer calls
            shutil.rmtree(run)
            return outcome
        outcome.num_cases += 1
        wrong = world.finish(run) if status == -9 else f"ended with {status}"
        if wrong:
            outcome.misses.append(f"call {nth}: {wrong}")
        else:
            shutil.rmtree(run)
        nth += stride


def error_campaign(world: World, stride: int = 1) -> Outcome:
    """Let every `stride`-th call fail once with EIO, and it and all later ones with ENOSPC."""
    outcome = Outcome("the nth call fails, EIO and ENOSPC")
    for error, and_after in ((errno.EIO, False), (errno.ENOSPC, True)):
        nth = 1
        while _is_reached(world, nth, error, and_after, outcome):
            nth += stride
    return outcome


def _is_reached(world: World, nth: int, error: int, and_after: bool, outcome: Outcome) -> bool:
    """Try one case; return whether the run made so many calls."""
    run = world.root / f"fail-{nth}-{error}"
    told = world.root / "told"
    told.unlink(missing_ok=True)
    child = world.start(run, FailAt(run, nth, error, told, and_after))
    status = child.wait()
    if not told.exists():
        shutil.rmtree(run)
        return False
    outcome.num_cases += 1
    wrong = wrong_ending(status, child.stderr, run, world) or world.finish(run)
    if wrong:
        outcome.misses.append(f"call {nth} ({told.read_text()}, {errno.errorcode[error]}): {wrong}")
    else:
        shutil.rmtree(run)
    return True


def wrong_ending(status: int, stderr: str, run: Path, world: World) -> str:
    """Say what is wrong with how a run took a failure: it is to end in one line of ours, or to end well after all."""
    if status == 0:
        return world.differs(run)
    lines = [line for line in stderr.splitlines() if line.startswith("E-")]
    if status == 2 and len(lines) == 1 and "Traceback" not in stderr:
        return ""
    return f"ended with {status}, {len(lines)} error lines: {stderr[-400:]}"
