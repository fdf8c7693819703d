"""All proofs of one model, one after the other, and the table that shows them.

data in: a Subject → out: a Verification: what was proven and what came of each proof. Fits 80 columns.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lorakeet import progress
from lorakeet.formatting import COMMAND, count, difference, duration
from lorakeet.proofs.proof import ProofResult, check
from lorakeet.proofs.registry import chosen
from lorakeet.proofs.subject import Subject

if TYPE_CHECKING:
    from rich.console import Console

_MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("–", "yellow")}
_WIDTH = 80

LEGEND = (
    "Allowed is what rounding does on this machine, measured just now: a few times what a pass changes if every layer is "
    "rounded once more, or the error of plain PyTorch in the same type. 0: the bits must be equal."
)


@dataclass(frozen=True)
class Verification:
    """What was proven of which model, on which data."""

    about: dict[str, Any]
    results: Sequence[ProofResult]
    quick: bool
    seconds: float

    @cached_property
    def failed(self) -> list[ProofResult]:
        """The proofs that failed."""
        return [result for result in self.results if result.passed is False]

    @property
    def passed(self) -> bool:
        """Whether none failed."""
        return not self.failed

    @property
    def summary(self) -> str:
        """How many passed, in one line without a full stop."""
        done = [result for result in self.results if result.passed is not None]
        passed = len(done) - len(self.failed)
        kind = "quick proofs" if self.quick else "proofs"
        return f"{passed} of {len(done)} {kind} passed in {duration(self.seconds)}"

    def to_dict(self) -> dict[str, Any]:
        """Return what `lorakeet verify --json` prints."""
        return {
            "passed": self.passed,
            "quick": self.quick,
            "seconds": round(self.seconds, 1),
            "about": self.about,
            "proofs": [result.to_dict() for result in self.results],
        }


OnResult = Callable[[ProofResult], None]


def prove(subject: Subject, *, quick: bool, on_result: OnResult | None = None) -> list[ProofResult]:
    """Make the proofs; `on_result` hears of each as it is done."""
    results: list[ProofResult] = []
    proofs = chosen(quick=quick)
    with _messages_only_of_trouble():
        for number, proof in enumerate(proofs):
            progress.report(f"proving {proof.name}", number, len(proofs))
            results.append(check(proof, subject))
            if on_result is not None:
                on_result(results[-1])
    return results


@contextmanager
def _messages_only_of_trouble() -> Iterator[None]:
    """Leave out what a training run would say of its checkpoints."""
    logger = logging.getLogger("lorakeet")
    before, level = logger.level, max(logger.getEffectiveLevel(), logging.WARNING)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def print_table(verification: Verification, console: "Console") -> None:
    """Print a line for each proof, then what to do about those that failed or were not checked."""
    from rich.text import Text

    about = verification.about
    rows = f"{count(about['rows'], 'row')} of {about['data']}"
    console.print(Text(f"{about['model']}: {about['layers']} layers, {about['dtype']} on {about['device']}; {rows}"))
    console.print(Text(f"  {'proof':<32}{'difference':>14}{'allowed':>14}{'time':>14}", style="bold"))
    for result in verification.results:
        mark, colour = _MARKS[result.passed]
        console.print(Text(f"{mark} ", style=colour) + Text(f"{result.name:<32}{_numbers(result)}{_seconds(result):>14}"))
    console.print()
    for result in verification.results:
        if result.passed is not True:
            mark, colour = _MARKS[result.passed]
            console.print(Text(f"{mark} {result.name}: ", style=colour) + Text(_advice(result)))
    console.print(Text(LEGEND, style="dim"))
    console.print(Text(f"{verification.summary}.", style="bold"))


def _numbers(result: ProofResult) -> str:
    if result.passed is None:
        return f"{'not checked':>28}"
    return f"{difference(result.error):>14}{difference(result.tolerance):>14}"


def _seconds(result: ProofResult) -> str:
    return duration(result.seconds) if result.passed is not None else ""


def _advice(result: ProofResult) -> str:
    """Say what failed and what to do, or why there was nothing to compare."""
    text = result.fix if result.passed is None else f"{result.compares} {result.fix}"
    return text if COMMAND.search(text) else f"{text}."
