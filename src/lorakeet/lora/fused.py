"""Names of the parts of a fused layer: q_proj, k_proj and v_proj where the model has one qkv_proj.

data in: a LoraConfig, a model, and which layers of it are fused from which parts → out: the same LoraConfig in the
model's own names, and notes about what was renamed. A name that the model has is never touched. PEFT passes over names
that match nothing, so a list made for separate layers trains half of a fused model silently; here the parts of a
layer are either all named, which means the layer, or the run stops.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lorakeet.config import LoraConfig
from lorakeet.errors import ConfigError
from lorakeet.lora.targets import matches_any, places

Parts = Mapping[str, Sequence[str]]
"""{fused layer: its parts, in order}."""


def in_fused_names(config: LoraConfig, model: nn.Module, parts: Parts) -> tuple[LoraConfig, list[str]]:
    """Return `config` with fused layers in place of their parts, and a note for each of them.

    Raises:
        ConfigError: E-CFG-42 if only some parts of a layer are named, or if they are to differ.
    """
    paths = list(places(model))
    notes: list[str] = []
    changed: dict[str, Any] = {}
    for key in ("target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern"):
        value = getattr(config, key)
        if not value or isinstance(value, str):
            continue
        renamed = _rename(key, value if isinstance(value, dict) else dict.fromkeys(value), paths, parts, notes)
        changed[key] = renamed if isinstance(value, dict) else list(renamed)
    return config.model_copy(update=changed), notes


def _rename(key: str, named: Mapping[str, Any], paths: list[str], parts: Parts, notes: list[str]) -> dict[str, Any]:
    """Put the fused layer where the first of its parts stands; values are those of a pattern, or None."""
    result: dict[str, Any] = {}
    for name, value in named.items():
        prefix, _, last = name.rpartition(".")
        fused = next((fused for fused, its in parts.items() if last in its), None)
        if fused is None or _is_there(name, paths):
            result[name] = value
            continue
        dotted = f"{prefix}." if prefix else ""
        whole = dotted + fused
        if not _is_there(whole, paths):
            result[name] = value  # neither the part nor the layer: whoever looks for the name says so
            continue
        missing = [part for part in parts[fused] if dotted + part not in named]
        if missing:
            there = _and([part for part in parts[fused] if dotted + part in named])
            raise ConfigError(
                "E-CFG-42",
                f"names {there} but not {_and(missing)}; the model has them fused in one {fused}",
                place=f"peft_config.{key}",
                fix=f"Name {fused}, or all of {', '.join(parts[fused])}",
            )
        if any(named[dotted + part] != value for part in parts[fused]):
            raise ConfigError(
                "E-CFG-42",
                f"wants {_and(parts[fused])} to differ; the model has them fused in one {fused}",
                place=f"peft_config.{key}",
                fix=f"Give one value for {fused}",
            )
        if whole not in result:
            result[whole] = value
            notes.append(f"peft_config.{key}: {_and(parts[fused])} are one layer of this model, {whole}")
    return result


def _is_there(name: str, paths: list[str]) -> bool:
    """Tell whether the model has modules of this name; a leading ^ of a pattern demands the whole path."""
    return name[1:] in paths if name.startswith("^") else any(matches_any([name], path) for path in paths)


def _and(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
