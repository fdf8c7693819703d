"""The rotary settings of a config.json, read for every family, in the old spelling and the newer one.

data in: a config.json with `rope_theta` and `rope_scaling`, or with `rope_parameters` → out: the rotary fields of a
DecoderConfig, and back to the old spelling, which every version of transformers reads. A kind of scaling that the family
does not have, and a key that is not known, are refused.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lorakeet.models.config import (
    LARGEST,
    DecoderConfig,
    LinearRope,
    Llama3Rope,
    LongRope,
    RopeScaling,
    YarnRope,
    check_integer,
    is_positive,
    refusal,
)

Kinds = Mapping[str, str]
"""{name in config.json: what it means}: default, linear, llama3, yarn or longrope."""
PLAIN: Kinds = {"default": "default", "linear": "linear"}
EVERY: Kinds = {kind: kind for kind in ("default", "linear", "llama3", "yarn", "longrope")}
_ORIGINAL = "original_max_position_embeddings"
_KEYS = {
    *("type", "rope_type", "rope_theta", "partial_rotary_factor", "factor", "attention_factor", _ORIGINAL),
    *("short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}


def read_rope(raw: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    """Return the rotary fields of a DecoderConfig, wherever the file keeps them.

    Raises: ModelError if they are of a kind that is not in `kinds`, or make no sense.
    """
    nested = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(nested, dict):
        raise refusal(f"rope_scaling is {nested!r}; expected keys and values")
    unknown = sorted(set(nested) - _KEYS)
    if unknown:
        raise refusal(f"rope_scaling has the unknown keys {', '.join(unknown)}")
    rope = {"rope_theta": raw["rope_theta"], "partial_rotary_factor": raw.get("partial_rotary_factor") or 1.0}
    rope |= {key: value for key, value in nested.items() if value is not None}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in kinds:
        raise refusal(f"rope type is {kind!r}; expected {' or '.join(dict.fromkeys(kinds.values()))}")
    fields = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor")}
    return fields | {"rope_scaling": _scaling(kinds[kind], rope, raw)} | _original_field(kinds[kind], rope, raw)


def _original_field(kind: str, rope: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the length up to which LongRoPE's short factors hold; elsewhere it is the context."""
    length = _original(rope, raw) if kind == "longrope" else raw.get(_ORIGINAL, raw["max_position_embeddings"])
    return {_ORIGINAL: length}


def _original(rope: Mapping[str, Any], raw: Mapping[str, Any]) -> Any:
    """Return the length that the model was trained with before it was stretched."""
    length = raw.get(_ORIGINAL)
    nested = rope.get(_ORIGINAL, raw["max_position_embeddings"] if length is None else length)
    if length is not None and nested != length:
        raise refusal(f"{_ORIGINAL} is {length!r}, but {nested!r} in rope_scaling")
    return nested


def _scaling(kind: str, rope: Mapping[str, Any], raw: Mapping[str, Any]) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind == "longrope":
        return _longrope(rope, raw)
    factor: Any = rope.get("factor")
    if not is_positive(factor):
        raise refusal(f"rope_scaling.factor is {factor!r}; expected a number above 0")
    if kind == "linear":
        return LinearRope(factor)
    if kind == "llama3":
        low: Any = rope.get("low_freq_factor")
        high: Any = rope.get("high_freq_factor")
        return Llama3Rope(factor, low, high, _original(rope, raw))
    beta_fast, beta_slow = rope.get("beta_fast") or 32.0, rope.get("beta_slow") or 1.0
    return YarnRope(factor, _original(rope, raw), _yarn_magnitude(rope), beta_fast, beta_slow, rope.get("truncate", True))


def _yarn_magnitude(rope: Mapping[str, Any]) -> float:
    """Return YaRN's attention factor: the one in the file, or the paper's."""
    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]
    weights = [rope.get(key) for key in ("mscale", "mscale_all_dim")]
    if not all(weight is None or is_positive(weight) or weight == 0 for weight in weights):
        raise refusal(f"rope_scaling.mscale and mscale_all_dim are {weights!r}; expected numbers")

    def magnitude(weight: float) -> float:
        return 1.0 if rope["factor"] <= 1 else 0.1 * weight * math.log(rope["factor"]) + 1.0

    above, below = weights
    return magnitude(above) / magnitude(below) if above and below else magnitude(1.0)


def _longrope(rope: Mapping[str, Any], raw: Mapping[str, Any]) -> LongRope:
    original, longest = _original(rope, raw), raw["max_position_embeddings"]
    for key, value in ((_ORIGINAL, original), ("max_position_embeddings", longest)):
        check_integer(key, value, 2, LARGEST[key])
    for key in ("short_factor", "long_factor"):
        values = rope.get(key)
        if not isinstance(values, list) or not all(is_positive(value) for value in values):
            raise refusal(f"rope_scaling.{key} must be a list of numbers above 0")
    factor, attention_factor = rope.get("factor", longest / original), rope.get("attention_factor")
    if not is_positive(factor):
        raise refusal(f"rope_scaling.factor is {factor!r}; expected a number above 0")
    if attention_factor is None:
        attention_factor = _longrope_magnitude(factor, original)
    short, long = ([float(value) for value in rope[key]] for key in ("short_factor", "long_factor"))
    return LongRope(tuple(short), tuple(long), attention_factor)


def _longrope_magnitude(factor: float, original: int) -> float:
    """Return LongRoPE's attention factor for contexts `factor` times as long as the original ones."""
    return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys of config.json that say how the model rotates."""
    values: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": None}
    scaling = config.rope_scaling
    if isinstance(scaling, LongRope):
        values["rope_scaling"] = _write_longrope(config, scaling)
    elif scaling is not None:
        kind = {LinearRope: "linear", Llama3Rope: "llama3", YarnRope: "yarn"}[type(scaling)]
        usual = {field.name: field.default for field in dataclasses.fields(scaling)}
        given = {key: value for key, value in dataclasses.asdict(scaling).items() if value != usual[key]}
        values["rope_scaling"] = {"rope_type": kind, **given}
    return values


def _write_longrope(config: DecoderConfig, scaling: LongRope) -> dict[str, Any]:
    original = config.original_max_position_embeddings
    short, long = list(scaling.short_factor), list(scaling.long_factor)
    values: dict[str, Any] = {"type": "longrope", "short_factor": short, "long_factor": long}
    factor = config.max_position_embeddings / original
    if config.family != "phi3":  # which alone keeps the length beside these
        return values | {_ORIGINAL: original, "factor": factor, "attention_factor": scaling.attention_factor}
    # Older readers accept these three keys and no other, so the factor is written only if it is not the usual one.
    if scaling.attention_factor != _longrope_magnitude(factor, original):
        values["attention_factor"] = scaling.attention_factor
    return values
