"""The demo's score: is the generated text the expected JSON, no more and no less?

data in: expected and generated text → out: True or False, and the share of True. White space around or inside the
JSON, the order of keys and the spelling of a number (12.5, 12.50) do not matter; anything else does.
"""

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from lorakeet.errors import DataError


def score(expected: str, generated: str) -> bool:
    """Say whether two texts are the same JSON value.

    Raises: DataError where `expected` is not JSON; a `generated` that is not JSON is simply wrong.
    """
    try:
        wanted = parse(expected)
    except ValueError as error:
        raise DataError(
            "E-DATA-140", f"the expected answer {expected!r} is not JSON: {error}", fix="Correct the row"
        ) from None
    try:
        return _same(wanted, parse(generated))
    except ValueError:
        return False


def score_all(expected: Sequence[str], generated: Sequence[str]) -> float:
    """Return the share of generated texts that are the expected JSON.

    Raises: DataError where there is nothing to score or the two differ in length.
    """
    if not expected or len(expected) != len(generated):
        raise DataError(
            "E-DATA-141",
            f"found {len(expected)} expected answers and {len(generated)} generated ones",
            fix="Give as many generated answers as expected ones, and at least one",
        )
    return sum(map(score, expected, generated)) / len(expected)


def parse(text: str) -> Any:
    """Return the one JSON value in a text, by the letter of RFC 8259, and with every key once.

    Raises: ValueError where the text is anything else.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=Decimal, parse_int=Decimal
        )
    except RecursionError:
        raise ValueError("too deeply nested") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _same(one: Any, other: Any) -> bool:
    """Compare as JSON does: true is no number, though Python says True == 1."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
