"""The values of a row, each checked for its kind.

data in: parsed JSON → out: the same value where it is of the kind that is needed, else a DataError with its place.
No formats, no roles.
"""

from typing import Any

from lorakeet.data import strict_json
from lorakeet.errors import DataError

EMPTY: tuple[Any, ...] = (None, "", [], {})
"""What exporters write if there is nothing."""
_TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("thinking", "reasoning")


def as_object(row: Any, place: str) -> dict[str, Any]:
    """Return a row that is an object. Raises DataError if it is not."""
    if not isinstance(row, dict):
        raise wrong("E-DATA-11", f"is {kind(row)}; expected object", place)
    return row


def as_list(value: Any, place: str, where: str) -> list[Any]:
    """Return a list, or the list that a CSV column or an exporter wrote as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = strict_json.loads(value, f"{place} {where}")
    if not isinstance(value, list):
        raise wrong("E-DATA-115", f"{where} is {kind(value)}; expected a list", place)
    return value


def as_text(value: Any, place: str, where: str) -> str:
    """Return a text. Raises DataError for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        raise wrong("E-DATA-22", f"{where} is a list; text only", place)
    raise wrong("E-DATA-21", f"{where} is {kind(value)}; must be text", place)


def as_content(value: Any, place: str, where: str) -> tuple[str, str]:
    """Read content that is a text or a list of parts. Return the text parts joined, and the reasoning parts joined.

    Raises DataError for a part of another type, by that type: an answer about an image that is left out would be trained on.
    """
    if not isinstance(value, list):
        return as_text(value, place, where), ""
    texts, thoughts = [], []
    for i, part in enumerate(value):
        here = f"{where}[{i}]"
        if not isinstance(part, dict):
            raise wrong("E-DATA-22", f"{here} is {kind(part)}; expected a part with type and text", place)
        name = part.get("type")
        if name in _TEXT_PARTS:
            texts.append(as_text(part.get("text"), place, f"{here}.text"))
        elif name in REASONING_PARTS:
            inner = next((part[key] for key in (*REASONING_PARTS, "text") if part.get(key) is not None), None)
            thoughts.append(as_content(inner, place, f"{here}.{name}")[0])
        else:
            shown = f'"{name[:40]}"' if isinstance(name, str) else kind(name)
            raise DataError(
                "E-DATA-22",
                f"{here} has the type {shown}; text only",
                place=place,
                fix="Leave such rows out, or describe the part",
            )
    return "".join(texts), "".join(thoughts)


def maybe_json(value: Any, place: str, where: str) -> Any:
    """Parse a list of objects that a CSV column or an exporter wrote as JSON text; any other text stays as it is."""
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[\n", "[ "):
        try:
            parsed = strict_json.loads(value, f"{place} {where}")
        except DataError:
            return value
        return parsed if isinstance(parsed, list) and all(isinstance(item, dict) for item in parsed) else value
    return value


def without_null_fields(value: Any) -> tuple[Any, int]:
    """Copy a value without the fields of its objects that are null, and count them; nulls in lists stay."""
    if isinstance(value, dict):
        kept = {key: without_null_fields(item) for key, item in value.items() if item is not None}
        dropped = len(value) - len(kept) + sum(count for _, count in kept.values())
        return {key: item for key, (item, _) in kept.items()}, dropped
    if isinstance(value, list):
        items = [without_null_fields(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    return value, 0


def wrong(code: str, message: str, place: str) -> DataError:
    """Return an error whose mend is in the row itself."""
    return DataError(code, message, place=place, fix="Fix the row")


def kind(value: Any) -> str:
    """Name a JSON value's kind, and small values themselves."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {str(value)[:20]}"
    kinds = {"str": "text", "list": "a list", "dict": "an object"}
    return kinds.get(type(value).__name__, type(value).__name__)


def names(keys: Any) -> str:
    """List the first keys of a row."""
    shown = [str(key)[:40] for key in keys]
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "") if shown else "none"
