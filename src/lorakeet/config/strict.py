"""Strict models: every key is known, every value has its type and range, every complaint is one line with its code.

data in: keys and values as a person or a program wrote them → out: a frozen pydantic model, and notes about keys of
the field's that were accepted without an effect. Which keys those are says `foreign_keys.py`.
"""

import difflib
import numbers
import types
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from lorakeet.config.foreign_keys import ForeignKey
from lorakeet.errors import ConfigError

OUT_OF_RANGE = "E-CFG-107"
"""The code of a value that a field does not take, where the field has no code of its own."""


class StrictModel(BaseModel):
    """A frozen model whose every complaint is a ConfigError that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True)

    section: ClassVar[str] = ""
    """Where the model stands in a configuration; every complaint begins with it."""
    codes: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Fields whose wrong values have a code and a fix of their own: {field: (code, fix)}."""
    foreign_keys: ClassVar[Mapping[str, ForeignKey]] = {}
    """Keys of the field's that are no fields here."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Other names of fields: {theirs: ours}."""
    none_is_default: ClassVar[frozenset[str]] = frozenset()
    """Fields that take None as "not said", because the field's own default is None."""

    _notes: tuple[str, ...] = PrivateAttr(default=())

    def __init__(self, **values: Any) -> None:
        kept, notes = self._read(values)
        try:
            super().__init__(**kept)
        except ValidationError as error:
            raise _config_error(type(self), error) from None
        self._notes = tuple(notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """Say, a line each, which keys were accepted without an effect, and what stands in their place."""
        return self._notes

    @classmethod
    def _read(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Sort keys into fields of ours, in plain values, and notes about those that are none.

        Raises: ConfigError E-CFG-108 for a key that would change the trained weights and cannot be honoured.
        """
        kept: dict[str, Any] = {}
        notes: list[str] = []
        for key, value in values.items():
            name = cls.renamed.get(key, key)
            if name in cls.foreign_keys:
                note = cls.foreign_keys[name].accept(f"{cls.section}.{key}", value)
                notes += [note] if note else []
            elif name in kept:
                raise ConfigError(
                    "E-CFG-31",
                    f'"{key}" is another name of "{name}", which is set too',
                    place=cls.section,
                    fix="Keep one of them",
                )
            elif not (value is None and name in cls.none_is_default):
                kept[name] = _plain(value, cls.model_fields.get(name))
        return kept, notes


def _plain(value: Any, field: FieldInfo | None) -> Any:
    """Turn what other libraries' dictionaries hold into plain values: enums, paths, sets, numbers of other kinds."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    kinds = _kinds(field.annotation) if field is not None else set()
    if isinstance(value, str) and float in kinds and str not in kinds:
        try:
            return float(value)  # a quoted 2e-4
        except ValueError:
            return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not {int, float} & kinds:
        return value
    if isinstance(value, numbers.Integral):  # numpy's too; through float a large seed would lose its last digits
        return int(value)
    number = float(value)
    return int(number) if float not in kinds and number.is_integer() else number


def _kinds(annotation: Any) -> set[Any]:
    """Return the plain types that an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return set().union(*(_kinds(part) for part in get_args(annotation)))
    return {annotation}


def _config_error(model: type[StrictModel], error: ValidationError) -> ConfigError:
    """Turn pydantic's first complaint into our one line."""
    detail = error.errors(include_url=False)[0]
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # of a section, which has said it all
        return cause
    place = detail["loc"]
    key = str(place[0]) if place else ""
    if detail["type"] == "extra_forbidden":
        return _unknown_key(model, key)
    code, fix = model.codes.get(key, (OUT_OF_RANGE, "Correct the value"))
    where = ".".join(part for part in (model.section, key) if part)
    field = model.model_fields.get(key)
    if detail["type"] == "missing":
        return ConfigError(code, "is missing", place=where, fix="Name it")
    if len(place) == 1 or _is_simple(field):
        message = f"is {_shown(detail['input'])}; allowed: {_allowed(field)}"
    else:
        message = f"has {_shown(detail['input'])}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"
    return ConfigError(code, message, place=where, fix=fix)


def _unknown_key(model: type[StrictModel], key: str) -> ConfigError:
    known = [*model.model_fields, *model.renamed, *model.foreign_keys]
    near = difflib.get_close_matches(key, known, n=1)
    fix = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(sorted(model.model_fields))}"
    return ConfigError("E-CFG-31", f'unknown key "{key}"', place=model.section, fix=fix)


def _is_simple(field: FieldInfo | None) -> bool:
    """Tell whether a field holds a number, a word or a switch, and no list or mapping."""
    if field is None:
        return False
    return all(kind in (int, float, bool, str, type(None)) or get_origin(kind) is Literal for kind in _kinds(field.annotation))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _allowed(field: FieldInfo | None) -> str:
    """Return in words which values a field takes."""
    assert field is not None
    kinds = _kinds(field.annotation)
    said = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            said += [str(choice) for choice in get_args(kind)]
    if bool in kinds:
        said.append("true or false")
    if int in kinds or float in kinds:
        said.append(("a number" if float in kinds else "a whole number") + _bounds(field))
    if str in kinds:
        pattern = next((item.pattern for item in field.metadata if getattr(item, "pattern", None)), None)
        said.append(f"text of the form {pattern}" if pattern else "text")
    if any(get_origin(kind) is list for kind in kinds):
        said.append("a list of them" if str in kinds else "a list")
    if any(get_origin(kind) is dict for kind in kinds):
        said.append("keys and values")
    if type(None) in kinds:
        said.append("null")
    return ", ".join(said)


def _bounds(field: FieldInfo) -> str:
    """Return the range of a numeric field: " from 1 to 1024", " above 0"."""
    found = {
        name: value
        for item in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if (value := getattr(item, name, None)) is not None
    }
    low = f"from {found['ge']}" if "ge" in found else f"above {found['gt']}" if "gt" in found else ""
    high = f"to {found['le']}" if "le" in found else f"and below {found['lt']}" if "lt" in found else ""
    if low and high.startswith("and"):
        return f" {low} {high}"
    return "".join(f" {part}" for part in (low, high) if part)
