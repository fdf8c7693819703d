"""The report of a run that was killed shows what there is, and says that the run is not finished."""

import random
import re
import shutil
import time
from pathlib import Path

from lorakeet.errors import CheckpointError
from lorakeet.reports.run_report import write_report
from tests.faults.runs import Outcome, World, metrics


def campaign(world: World, num: int, seed: int = 0) -> Outcome:
    """Kill `num` runs at random times and write the report of each."""
    outcome, dice = Outcome("the report of a killed run"), random.Random(seed)
    num_cut = 0
    for case in range(num):
        run = world.root / f"cut-{case}"
        child = world.start(run)
        time.sleep(dice.uniform(0.2, 1) * world.seconds)
        child.kill()
        outcome.num_cases += 1
        num_cut += not (run / "adapter").is_dir()
        if wrong := wrong_report(run):
            outcome.misses.append(f"kill {case}: {wrong}")
        shutil.rmtree(run, ignore_errors=True)
    outcome.note = f"{num_cut} of them were not finished"
    return outcome


def wrong_report(run: Path) -> str:
    """Write a run's report; return what is wrong with it, or nothing."""
    try:
        page = write_report(run).read_text(encoding="utf-8")
    except CheckpointError as error:  # killed before it was a run
        return "" if error.code == "E-CKPT-100" and not (run / "config.yaml").exists() else str(error)
    if (run / "adapter").is_dir():
        return "" if "Finished after step" in page else "a finished run is not said to be finished"
    steps = [row["step"] for row in _whole_rows(run) if "loss" in row]
    expected = f"Not finished: the last logged step is {steps[-1]}. Go on with: " if steps else "No step is logged yet."
    return "" if re.search(re.escape(expected), page) else f'does not say "{expected}"'


def _whole_rows(run: Path) -> list[dict]:
    """Return the rows that are whole; the last line may be cut."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    text = path.read_text()
    path.write_text(text[: text.rfind("\n") + 1])
    return metrics(run)
