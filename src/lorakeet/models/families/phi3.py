"""All that is Phi-3's own: what its config.json says and means, and its fused layers.

data in: a config.json, in the old spelling (`rope_theta`, `rope_scaling`) or the newer one (`rope_parameters`)
→ out: a DecoderConfig, and back. Whatever would make the model compute something else than the decoder here computes is
refused, not ignored.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lorakeet.models.config import LARGEST, DecoderConfig, LongRope, check_integer, is_positive, refusal

ARCHITECTURE = "Phi3ForCausalLM"
MODEL_TYPE = "phi3"

# What transformers' DecoderConfig assumes of a file that leaves the key out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 1.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
}
# Keys that change what the decoder computes, with the only value under which it computes what this one does.
_ONLY_VALUE: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
    "attention_dropout": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
}
_LONGROPE_NAMES = ("longrope", "su", "yarn")
_ROPE_KEYS = {
    "type",
    "rope_type",
    "rope_theta",
    "partial_rotary_factor",
    "short_factor",
    "long_factor",
    "factor",
    "attention_factor",
    "original_max_position_embeddings",
}


def from_json(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the values of a config.json of this family.

    Raises: ModelError if they would make the model compute something else than the decoder here computes.
    """
    raw = {**_DEFAULTS, **raw}
    rope = _rope_values(raw)
    for key, only in _ONLY_VALUE.items():
        if raw.get(key, only) != only:
            raise refusal(f"{key} is {raw[key]!r}; only {only!r} is supported")
    eos = raw["eos_token_id"]
    config = DecoderConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_hidden_layers=raw["num_hidden_layers"],
        num_attention_heads=raw["num_attention_heads"],
        num_key_value_heads=_given(raw, "num_key_value_heads", raw["num_attention_heads"]),
        max_position_embeddings=raw["max_position_embeddings"],
        original_max_position_embeddings=raw["original_max_position_embeddings"],
        rms_norm_eps=raw["rms_norm_eps"],
        rope_theta=rope["rope_theta"],
        partial_rotary_factor=rope["partial_rotary_factor"],
        rope_scaling=_longrope_from(rope, raw),
        sliding_window=raw.get("sliding_window"),
        tie_word_embeddings=raw["tie_word_embeddings"],
        bos_token_id=raw["bos_token_id"],
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        pad_token_id=raw["pad_token_id"],
    )
    if _given(raw, "head_dim", config.head_dim) != config.head_dim:
        raise refusal(f"head_dim is {raw['head_dim']!r}; only hidden_size / num_attention_heads is supported")
    return config


def _rope_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary settings as one dictionary, wherever the file keeps them."""
    nested = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(nested, dict):
        raise refusal(f"rope_scaling is {nested!r}; expected keys and values")
    unknown = sorted(set(nested) - _ROPE_KEYS)
    if unknown:
        raise refusal(f"rope_scaling has the unknown keys {', '.join(unknown)}")
    rope = {key: raw[key] for key in ("rope_theta", "partial_rotary_factor")}
    rope |= {key: value for key, value in nested.items() if value is not None}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", *_LONGROPE_NAMES):
        raise refusal(f"rope type is {kind!r}; expected default or longrope")
    rope["rope_type"] = "default" if kind == "default" else "longrope"
    return rope


def _longrope_from(rope: Mapping[str, Any], raw: Mapping[str, Any]) -> LongRope | None:
    if rope["rope_type"] == "default":
        return None
    original, longest = raw["original_max_position_embeddings"], raw["max_position_embeddings"]
    nested = rope.get("original_max_position_embeddings", original)
    if nested != original:
        raise refusal(f"original_max_position_embeddings is {original!r}, but {nested!r} in rope_scaling")
    for key, value in (("original_max_position_embeddings", original), ("max_position_embeddings", longest)):
        check_integer(key, value, 2, LARGEST[key])
    for key in ("short_factor", "long_factor"):
        values = rope.get(key)
        if not isinstance(values, list) or not all(is_positive(value) for value in values):
            raise refusal(f"rope_scaling.{key} must be a list of numbers above 0")
    factor, attention_factor = rope.get("factor", longest / original), rope.get("attention_factor")
    if not is_positive(factor):
        raise refusal(f"rope_scaling.factor is {factor!r}; expected a number above 0")
    if attention_factor is None:
        attention_factor = default_attention_factor(factor, original)
    return LongRope(
        tuple(float(value) for value in rope["short_factor"]),
        tuple(float(value) for value in rope["long_factor"]),
        attention_factor,
    )


def default_attention_factor(factor: float, original_max_position_embeddings: int) -> float:
    """Return LongRoPE's attention factor for contexts `factor` times as long as the original ones."""
    return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original_max_position_embeddings))


def _longrope_to_dict(config: DecoderConfig, scaling: LongRope) -> dict[str, Any]:
    values: dict[str, Any] = {
        "type": "longrope",
        "short_factor": list(scaling.short_factor),
        "long_factor": list(scaling.long_factor),
    }
    factor = config.max_position_embeddings / config.original_max_position_embeddings
    # Older readers accept these three keys and no other, so the factor is written only if it is not the usual one.
    if scaling.attention_factor != default_attention_factor(factor, config.original_max_position_embeddings):
        values["attention_factor"] = scaling.attention_factor
    return values


def to_json(config: DecoderConfig, dtype: str | None = None) -> dict[str, Any]:
    """Return the config.json of this model, in the spelling that every version of transformers reads.

    dtype: name of the weights' type, such as "bfloat16".
    """
    values: dict[str, Any] = {"architectures": [ARCHITECTURE], "model_type": MODEL_TYPE}
    values |= dataclasses.asdict(config)
    if isinstance(config.eos_token_id, tuple):
        values["eos_token_id"] = list(config.eos_token_id)
    if config.rope_scaling is not None:
        values["rope_scaling"] = _longrope_to_dict(config, config.rope_scaling)
    if dtype is not None:
        values |= {"dtype": dtype, "torch_dtype": dtype}  # the latter for versions before 4.56
    return values


def _given(raw: Mapping[str, Any], key: str, default: Any) -> Any:
    return default if raw.get(key) is None else raw[key]
