"""SIGTERM and Ctrl-C at random times and in every phase: the run saves, says how to go on, and ends bit-equal."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.faults.runs import Child, Outcome, World

PHASES = {
    "loading": "lorakeet.models.weights:load_weights",
    "encoding": "lorakeet.data.encode_all:encode_many",
    "evaluation": "lorakeet.training.loop:evaluate_loss",
    "training": "lorakeet.training.loop:packed_loss",
    "saving": "lorakeet.rundir.checkpoint:_compare",
    "the adapter": "lorakeet.training.run:save_adapter",
}
"""What is slowed down so that a signal meets it."""
MOST_SECONDS = 30


def campaign(world: World, num: int, seed: int = 0) -> Outcome:
    """Send SIGTERM to `num` runs at random times."""
    outcome, dice = Outcome("SIGTERM at random times"), random.Random(seed)
    slowest = 0.0
    for case in range(num):
        run = world.root / f"term-{case}"
        child = world.start(run)
        time.sleep(dice.uniform(0.15, 1) * world.seconds)
        slowest = max(slowest, _stop(world, run.name, child, signal.SIGTERM, outcome))
        shutil.rmtree(run, ignore_errors=True)
    outcome.note = f"slowest exit {slowest:.1f} s"
    return outcome


def phase_campaign(world: World) -> Outcome:
    """Send each signal in each phase, while it is slowed down; and a second one to a run that is saving."""
    outcome = Outcome("both signals in every phase")
    for phase, place in PHASES.items():
        for number in (signal.SIGTERM, signal.SIGINT):
            name = f"{phase}-{number}".replace(" ", "-")
            child = _slowed(world, name, place, 1.0, outcome)
            _stop(world, name, child, number, outcome)
            shutil.rmtree(world.root / name, ignore_errors=True)
    child = _slowed(world, "twice", PHASES["saving"], MOST_SECONDS, outcome)
    child.signal(signal.SIGTERM)
    time.sleep(0.2)
    seconds = _stop(world, "twice", child, signal.SIGTERM, outcome)
    if seconds > 5:
        outcome.misses.append(f"a second signal took {seconds:.1f} s")
    return outcome


def _slowed(world: World, name: str, place: str, seconds: float, outcome: Outcome) -> Child:
    """Start a run and wait until it is in the function that is slowed down."""
    told = world.root / f"{name}.told"
    # The second evaluation and the second step: there is something to save then.
    nth = 2 if place in (PHASES["evaluation"], PHASES["training"]) else 1
    child = world.start(world.root / name, Slow(place, str(told), seconds, nth))
    while not told.exists() and child.is_alive:
        time.sleep(0.005)
    if not told.exists():
        outcome.misses.append(f"{name}: the run ended before it: {child.stderr[-300:]}")
    return child


def _stop(world: World, name: str, child: Child, number: int, outcome: Outcome) -> float:
    """Signal a run, see it end well or stopped, and let it go on; return the seconds that stopping took."""
    began = time.perf_counter()
    child.signal(number)
    status = child.wait()
    seconds = time.perf_counter() - began
    outcome.num_cases += 1
    run = world.root / name
    if status == 0 or (status == 130 and "Traceback" not in child.stderr and seconds <= MOST_SECONDS):
        wrong = world.finish(run)
    else:
        wrong = f"ended with {status} after {seconds:.1f} s: {child.stderr[-400:]}"
    if wrong:
        outcome.misses.append(f"{name}: {wrong}")
    return seconds


@dataclass(frozen=True)
class Slow:
    """Let a function take longer from its nth call on, and say in a file when that begins."""

    place: str
    told: str
    seconds: float
    nth: int = 1

    def __call__(self) -> None:
        import importlib
        from pathlib import Path

        os.environ["LORAKEET_CACHE"] = f"{self.told}.cache"  # so that rows are encoded, not remembered
        module_name, _, name = self.place.partition(":")
        module = importlib.import_module(module_name)
        original: Callable[..., Any] = getattr(module, name)
        calls = 0

        def slowed(*given: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.nth:
                Path(self.told).write_text("now")
                end = time.monotonic() + self.seconds
                while time.monotonic() < end:
                    time.sleep(0.01)
            return original(*given, **options)

        setattr(module, name, slowed)
