"""JSON as the standard means it: what Python's reader lets pass silently is an error here.

data in: text → out: parsed values. Refused: repeated keys, NaN and infinities, lone surrogates, more than 32 levels,
numbers of absurd length. This file knows no files and no formats.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

from lorakeet.errors import DataError

MAX_DEPTH = 32
MAX_DIGITS = 400
_LONGEST_TOKEN = 12  # characters of an escape, a literal, or an exponent


class JsonEndsEarly(ValueError):
    """The text is the beginning of valid JSON and stops there."""


def loads(text: str, place: str) -> Any:
    """Parse one JSON value. Raises DataError, with the place, for everything listed above."""
    try:
        value, end = raw_decode(text, _skip_space(text, 0), place)
    except JsonEndsEarly:
        raise ends_early(place) from None
    if _skip_space(text, end) != len(text):
        raise DataError(
            "E-DATA-100",
            f"is not valid JSON: something follows the value at column {end + 1}",
            place=place,
            fix="Write one JSON value there",
        )
    return value


def raw_decode(text: str, start: int, place: str, *, is_whole: bool = True) -> tuple[Any, int]:
    """Parse the JSON value that begins at `start`; return it and where it ends.

    `is_whole` is False if `text` is a window on more: then an error close to its end may only be the cut.

    Raises JsonEndsEarly if more text might complete the value, DataError if nothing could.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if _is_cut(text, error) or (not is_whole and error.pos > len(text) - _LONGEST_TOKEN):
            raise JsonEndsEarly from None
        raise DataError(
            "E-DATA-100",
            f"is not valid JSON: {error.msg} at column {error.pos - start + 1}",
            place=place,
            fix="Correct the row",
        ) from None
    except RecursionError:
        raise _too_deep(place) from None
    except _Refused as refused:
        raise DataError(refused.code, refused.message, place=place, fix=refused.fix) from None
    # Both checks walk the value, and only text that looks suspicious pays for the walk.
    if text.count("{", start, end) + text.count("[", start, end) > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep(place)
    if text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0:
        _refuse_lone_surrogates(value, place)
    return value, end


def _is_cut(text: str, error: json.JSONDecodeError) -> bool:
    """Tell an error that more text could mend: the rest of the text is the beginning of something."""
    rest = text[error.pos :].rstrip()
    literal = len(rest) < 5 and any(name.startswith(rest) for name in ("true", "false", "null", "-"))
    escape = rest == "\\" or (rest.startswith("\\u") and len(rest) < 6)
    return literal or escape or error.msg.startswith("Unterminated string")


def ends_early(place: str) -> DataError:
    """Return the error of a value that was cut off."""
    return DataError("E-DATA-9", "JSON ends early", place=place, fix="The file was probably cut; write it again")


class _Refused(Exception):
    """Carry a refusal out of the parser's hooks, which do not know the place."""

    def __init__(self, code: str, message: str, fix: str) -> None:
        super().__init__(message)
        self.code, self.message, self.fix = code, message, fix


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refused("E-DATA-12", f"key {_quote(twice)} is repeated in one object", "Keep one of the two")
    return result


def _no_constant(name: str) -> Any:
    raise _Refused("E-DATA-13", f"{name} is not valid JSON number", "Write a finite number or null")


def _finite(digits: str) -> float:
    value = float(digits) if len(digits) <= MAX_DIGITS else math.nan
    if not math.isfinite(value):
        raise _Refused("E-DATA-13", f"{digits[:20]} is not valid JSON number here: too large", "Write a finite number")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _Refused("E-DATA-16", f"number too long: {len(digits)} digits", "Write it as text")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer)


def _too_deep(place: str) -> DataError:
    return DataError("E-DATA-15", f"JSON is nested deeper than {MAX_DEPTH}", place=place, fix="Flatten the row")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level := [child for child in level if isinstance(child, dict | list)]:
        depth += 1
        level = [grandchild for child in level for grandchild in _children(child)]
    return depth


def _refuse_lone_surrogates(value: Any, place: str) -> None:
    stack = [value]
    while stack:
        item = stack.pop()
        stack.extend(_children(item))
        for text in item if isinstance(item, dict) else [item]:
            if isinstance(text, str) and any("\ud800" <= char <= "\udfff" for char in text):
                raise DataError(
                    "E-DATA-14",
                    "invalid Unicode: a lone surrogate such as \\ud800",
                    place=place,
                    fix="Write the character itself, or its surrogate pair",
                )


def _quote(text: str) -> str:
    return json.dumps(text[:60], ensure_ascii=True)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
