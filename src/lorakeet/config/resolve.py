"""A configuration put together: the file, then flags over it, then `section.key=value` assignments over those.

data in: a YAML file, flags, assignments → out: a RunConfig; and a RunConfig → YAML that reads back as the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lorakeet.config.run import RunConfig
from lorakeet.config.yaml_file import load_yaml, parse_yaml
from lorakeet.errors import ConfigError


def with_overrides(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply `section.key=value` assignments, whose values are read as YAML, to a copy of `values`."""
    given: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, *keys = path.split(".")
        if not equals or len(keys) != 1 or not keys[0]:
            raise ConfigError(
                "E-CFG-104",
                f'"{assignment}" is not section.key=value',
                place="--set",
                fix="Write for example --set training_config.learning_rate=1e-4",
            )
        if not isinstance(values.get(section) or {}, dict):
            raise ConfigError("E-CFG-104", f'"{section}" has no keys', place="--set")
        given.setdefault(section, {})[keys[0]] = parse_yaml(text, f"--set {path}", object) if text else None
    return _layered(values, given)


def _layered(values: dict[str, Any], over: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Lay sections over those of a copy of `values`; a length of the run takes the place of the other one below it."""
    result = dict(values)
    for section, entries in over.items():
        below = dict(result.get(section) or {})
        for key, other in (("max_steps", "num_train_epochs"), ("num_train_epochs", "max_steps")):
            if entries.get(key) not in (None, -1):
                below.pop(other, None)
        result[section] = {**below, **entries}
    return result


def pairs(flag: str, assignments: Sequence[str] | None) -> dict[str, str]:
    """Read `a=b` flags into a dictionary."""
    found = {}
    for assignment in assignments or []:
        left, equals, right = assignment.partition("=")
        if not (left and equals and right):
            raise ConfigError("E-CFG-105", f'"{assignment}" is not NAME=NAME', place=flag)
        found[left] = right
    return found


def resolve_config(
    *,
    file: Path | None = None,
    model: str | None = None,
    adapter: str | None = None,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    flags: Mapping[str, Mapping[str, Any]] | None = None,
    assignments: Sequence[str] = (),
) -> RunConfig:
    """Put a configuration together: the file, MODEL, `adapter` and `sections` over it, then flags, then `--set` assignments.

    In `flags`, None and {} are what nobody said; in `sections` every key counts.
    """
    values: dict[str, Any] = load_yaml(file) if file else {}
    if isinstance(values.get("data"), str | list):
        values["data"] = {"train": values["data"]}
    values |= {key: value for key, value in (("model", model), ("adapter", adapter)) if value is not None}
    given = {
        section: {key: value for key, value in entries.items() if value not in (None, {})}
        for section, entries in (flags or {}).items()
    }
    values = _layered(values, sections or {})
    values = _layered(values, {section: entries for section, entries in given.items() if entries})
    values = with_overrides(values, assignments)
    for key, name in (("model", "MODEL"), ("data", "DATA")):
        if key not in values:
            raise ConfigError("E-CFG-106", f"no {name} given", fix="Write for example: lorakeet train phi3-mini chats.jsonl")
    return RunConfig(**values)


def to_values(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as plain values, which RunConfig reads back as the same one."""
    values = config.model_dump(mode="json")
    if config.training_config.max_steps > 0:
        del values["training_config"]["num_train_epochs"]  # without meaning beside it, and refused
    return values


def dump_yaml(config: RunConfig) -> str:
    """Write a configuration so that `load_yaml` reads back the same one."""
    return yaml.safe_dump(to_values(config), sort_keys=False, allow_unicode=True)
