"""The demo's score: is the generated text the expected JSON, no more and no less?

data in: expected and generated text → out: True or False, and the share of True. White space around or inside the
JSON, the order of keys and the spelling of a number (12.5, 12.50) do not matter; anything else does.
"""

from collections.abc import Sequence
from typing import Any

from lorakeet.data import strict_json
from lorakeet.errors import DataError


def score(expected: str, generated: str) -> bool:
    """Say whether two texts are the same JSON value.

    Raises: DataError if `expected` is not JSON; a `generated` that is not JSON is simply wrong.
    """
    wanted = strict_json.loads(expected, "expected answer")
    try:
        return _same(wanted, strict_json.loads(generated, "generated answer"))
    except DataError:
        return False


def score_all(expected: Sequence[str], generated: Sequence[str]) -> float:
    """Return the share of generated texts that are the expected JSON.

    Raises: DataError if there is nothing to score or the two differ in length.
    """
    if not expected or len(expected) != len(generated):
        raise DataError(
            "E-DATA-140",
            f"found {len(expected)} expected and {len(generated)} generated answers",
            fix="Pass as many of the one as of the other, and at least one",
        )
    return sum(map(score, expected, generated)) / len(expected)


def _same(one: Any, other: Any) -> bool:
    """Compare as JSON does, where true is no number, though Python says True == 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
