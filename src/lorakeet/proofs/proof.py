"""What a proof is, and what comes of one.

data in: a function that measures → out: a ProofResult. One proof is one function in one file of this folder; registry.py
lists them. A proof measures a difference and, in the same minute on the same machine, how much rounding may make it: no
tolerance is a remembered number.
"""

import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakeet.errors import LorakeetError

if TYPE_CHECKING:
    from lorakeet.proofs.subject import Subject

logger = logging.getLogger(__name__)

TO_THE_BIT = "equal to the bit"


@dataclass(frozen=True)
class Measured:
    """A difference, and the largest one that rounding explains."""

    error: float
    tolerance: float
    tolerance_from: str
    """How the tolerance was found."""
    note: str = ""
    """What was found where the difference is no number."""


@dataclass(frozen=True)
class NotChecked:
    """Why a proof has nothing to compare here, or what is to be installed first."""

    reason: str


@dataclass(frozen=True)
class Proof:
    """One claim about this model on this machine, and how it is put to the test."""

    name: str
    compares: str
    """One sentence: what is compared with what."""
    fix: str
    """What to do if it fails."""
    measure: "Callable[[Subject], Measured | NotChecked]"
    is_quick: bool = False
    """Whether it takes so little time that `--quick` includes it."""


@dataclass(frozen=True)
class ProofResult:
    """What came of one proof."""

    name: str
    compares: str
    error: float | None
    """The largest difference; None if nothing was compared."""
    tolerance: float | None
    """The largest difference that counts as rounding; 0 where the bits must be equal."""
    tolerance_from: str
    passed: bool | None
    """None if the proof was not checked."""
    fix: str
    """What to do: if it failed, or so that it can be checked."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: a difference that is no number becomes text."""
        values = dict(vars(self))
        is_number = self.error is None or math.isfinite(self.error)
        return values | {"error": self.error if is_number else str(self.error)}


def check(proof: Proof, subject: "Subject") -> ProofResult:
    """Put a proof to the test. What it raises is a failure of it: a claim that cannot even be computed is not proven."""
    begin = time.perf_counter()
    try:
        found = proof.measure(subject)
    except Exception as error:
        logger.debug("%s", traceback.format_exc())
        text = str(error) if isinstance(error, LorakeetError) else f"{type(error).__name__}: {error}"
        found = Measured(math.inf, 0.0, "", note=f"it ended with {text}")
    seconds = time.perf_counter() - begin
    if isinstance(found, NotChecked):
        return ProofResult(proof.name, proof.compares, None, None, "", None, found.reason, seconds)
    passed = found.error <= found.tolerance  # False for NaN
    fix = "" if passed else ". ".join(part.rstrip(". ") for part in (found.note, proof.fix) if part)
    return ProofResult(proof.name, proof.compares, found.error, found.tolerance, found.tolerance_from, passed, fix, seconds)


def worst(errors: Mapping[str, float], tolerances: Mapping[str, float], tolerance_from: str) -> Measured:
    """Return the one difference of several that is nearest to its tolerance, or farthest beyond it."""
    assert errors, "nothing was compared"

    def ratio(name: str) -> float:
        error, tolerance = errors[name], tolerances[name]
        if math.isnan(error):
            return math.inf
        return error / tolerance if tolerance else (math.inf if error else 0.0)

    name = max(errors, key=ratio)
    return Measured(errors[name], tolerances[name], tolerance_from if tolerances[name] else TO_THE_BIT, note=f"at {name}")
