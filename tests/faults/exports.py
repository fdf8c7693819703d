"""An export that is killed: nothing half written stays that looks whole, and the same command then does it."""

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.disk import DieAt
from tests.faults.runs import Outcome, Patch, World

FORMATS = {"hf": "out", "gguf": "out.gguf"}
"""One export that is a directory, and one that is a file."""


@dataclass(frozen=True)
class Unproven:
    """Leave the proof out, which writes nothing and takes most of the time."""

    then: Patch | None = None

    def __call__(self) -> None:
        from lorakeet.exports import export

        export._prove = lambda *_: (None, "not proven")
        if self.then is not None:
            self.then()


def campaign(world: World, stride: int, num_random: int, seed: int = 0) -> Outcome:
    """Kill exports in place of every `stride`-th call to the disk, and whole ones, with their proof, at random times."""
    outcome, dice = Outcome("an export is killed"), random.Random(seed)
    for form in FORMATS:
        whole = world.root / f"whole-{form}"
        if wrong := _export(world, form, whole, Unproven()):
            outcome.misses.append(f"{form}: {wrong}")
            continue
        nth = 1
        while _is_reached(world, form, whole, nth, outcome):
            nth += stride
        seconds = _seconds(world, form) if num_random else 0.0
        for case in range(num_random):
            place = world.root / f"{form}-at-{case}"
            child = world.command(_arguments(world, form, place), place.name)
            time.sleep(dice.uniform(0.1, 1) * seconds)
            child.kill()
            _check(world, form, whole, place, f"random {case}", outcome)
    return outcome


def _seconds(world: World, form: str) -> float:
    """Return how long a whole export takes, with its proof."""
    began = time.perf_counter()
    _export(world, form, world.root / f"proven-{form}", None)
    return time.perf_counter() - began


def _is_reached(world: World, form: str, whole: Path, nth: int, outcome: Outcome) -> bool:
    """Kill one export at its nth call; return whether it made so many."""
    place = world.root / f"{form}-{nth}"
    status = world.command(_arguments(world, form, place), place.name, Unproven(DieAt(place, nth))).wait()
    if status == -9:
        _check(world, form, whole, place, f"call {nth}", outcome)
    elif status != 0:
        outcome.misses.append(f"{form}, call {nth}: ended with {status}")
    shutil.rmtree(place, ignore_errors=True)
    return status == -9


def _check(world: World, form: str, whole: Path, place: Path, case: str, outcome: Outcome) -> None:
    """See that what is there is whole or nothing, and that the same command then leaves the whole and nothing else."""
    outcome.num_cases += 1
    is_there = (place / FORMATS[form]).exists()
    wrong = differs(whole, place) if is_there else _export(world, form, place, Unproven()) or differs(whole, place)
    left = sorted(path.name for path in place.iterdir() if path.name.startswith("."))
    if not is_there and left:
        wrong = wrong or f"leaves {', '.join(left)}"
    if wrong:
        outcome.misses.append(f"{form}, {case}: {wrong}")


def _arguments(world: World, form: str, place: Path) -> list[str]:
    return ["export", str(world.straight), "--format", form, "-o", str(place / FORMATS[form])]


def _export(world: World, form: str, place: Path, patch: Patch | None) -> str:
    """Export to the end; return what is wrong, or nothing."""
    child = world.command(_arguments(world, form, place), place.name, patch)
    status = child.wait()
    return "" if status == 0 else f"ended with {status}: {child.stderr[-300:]}"


def differs(whole: Path, place: Path) -> str:
    """Compare the artefact with one that nothing happened to; the record beside it names its own path."""
    expected, found = (
        {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file() and _counts(file)}
        for root in (whole, place)
    )
    return "" if found == expected else f"{', '.join(sorted(expected.keys() ^ found.keys())) or 'a file'} differs"


def _counts(file: Path) -> bool:
    return not file.name.endswith("lorakeet.json") and not any(part.endswith(".part") for part in file.parts)
