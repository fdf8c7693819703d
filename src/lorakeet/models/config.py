"""The shape of a Phi-3-family model, read from and written to Hugging Face's config.json.

data in: a config.json, in the old spelling (`rope_theta`, `rope_scaling`) or the newer one (`rope_parameters`)
→ out: a frozen, checked `DecoderConfig`. Whatever would make the model compute something else than this project's
decoder computes is refused, not ignored. Code that a config.json points at (`auto_map`) is never run.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakeet.errors import ModelError

ARCHITECTURE = "Phi3ForCausalLM"
MODEL_TYPE = "phi3"
MAX_JSON_BYTES = 16 * 2**20

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
# Largest believable sizes: a config.json is a stranger's file, and building the model allocates by it.
_LARGEST = {"num_hidden_layers": 1024, "max_position_embeddings": 2**31, "original_max_position_embeddings": 2**31}
_LARGEST_SIZE = 2**24
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


@dataclass(frozen=True)
class LongRope:
    """Rotary frequencies divided by one set of factors up to the original length, by another beyond it.

    Source: Ding et al. 2024, arXiv:2402.13753.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    attention_factor: float
    """Cosines and sines are multiplied by it, in short documents too."""


@dataclass(frozen=True)
class DecoderConfig:
    """Say how large a Phi-3 decoder is and how it turns positions into rotations."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    """Longest document that uses LongRoPE's short factors."""
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    partial_rotary_factor: float = 1.0
    """Part of every head that is rotated."""
    rope_scaling: LongRope | None = None
    sliding_window: int | None = None
    """How many tokens a query sees, its own included; None for all before it."""
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 32000
    pad_token_id: int | None = 32000
    hidden_act: str = "silu"

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Return the number of elements of a head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    def __post_init__(self) -> None:
        _check_sizes(self)

    @classmethod
    def from_directory(cls, path: Path) -> "DecoderConfig":
        """Read `path`/config.json.

        Raises: ModelError if it is missing, not JSON, of another model family, or impossible.
        """
        file = Path(path) / "config.json"
        return cls.from_dict(read_json(file), str(file))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], place: str) -> "DecoderConfig":
        """Read the values of a config.json; `place` says in errors where they come from.

        Raises: ModelError, as `from_directory`.
        """
        try:
            return _from_dict(raw)
        except ModelError as error:
            raise ModelError(error.code, error.message, place=place, fix=error.fix) from None

    def to_dict(self, dtype: str | None = None) -> dict[str, Any]:
        """Return the config.json of this model, in the spelling that every version of transformers reads.

        dtype: name of the weights' type, such as "bfloat16".
        """
        values: dict[str, Any] = {"architectures": [ARCHITECTURE], "model_type": MODEL_TYPE}
        values |= dataclasses.asdict(self)
        if isinstance(self.eos_token_id, tuple):
            values["eos_token_id"] = list(self.eos_token_id)
        if self.rope_scaling is not None:
            values["rope_scaling"] = _longrope_to_dict(self, self.rope_scaling)
        if dtype is not None:
            values |= {"dtype": dtype, "torch_dtype": dtype}  # the latter for versions before 4.56
        return values


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a model directory.

    Raises: ModelError if the file is missing, too large, or no JSON object.
    """
    if not file.is_file():
        raise ModelError("E-MODEL-100", "no such file, or not a regular one", place=str(file), fix="Name a model directory")
    try:
        size = file.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelError("E-MODEL-101", f"is {size} bytes, more than {MAX_JSON_BYTES}", place=str(file))
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelError("E-MODEL-101", f"cannot be read as JSON: {error}", place=str(file)) from None
    if not isinstance(value, dict):
        raise ModelError("E-MODEL-101", f"expected a JSON object, found {type(value).__name__}", place=str(file))
    return value


def _from_dict(raw: Mapping[str, Any]) -> DecoderConfig:
    _check_family(raw)
    raw = {**_DEFAULTS, **raw}
    rope = _rope_values(raw)
    for key, only in _ONLY_VALUE.items():
        if raw.get(key, only) != only:
            raise _refusal(f"{key} is {raw[key]!r}; only {only!r} is supported")
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
        raise _refusal(f"head_dim is {raw['head_dim']!r}; only hidden_size / num_attention_heads is supported")
    return config


def _check_family(raw: Mapping[str, Any]) -> None:
    """Refuse what is no Phi-3, and what only somebody's own code could load.

    Microsoft's directories name their remote code in `auto_map` beside model_type "phi3"; those load with the
    decoder in this project, and the code is left alone.
    """
    found = raw.get("model_type")
    if found != MODEL_TYPE:
        if raw.get("auto_map"):
            raise ModelError(
                "E-MODEL-71",
                f"model_type is {found!r} and needs code of its own (auto_map), which is never run",
                fix="Use a model of the Phi-3 family, with model_type phi3",
            )
        raise ModelError(
            "E-MODEL-72",
            f"model_type is {found!r}; only the Phi-3 family (model_type phi3) is supported",
            fix="Use a Phi-3, Phi-3.5, Phi-4-mini or Phi-4 model, or demo",
        )
    if raw.get("quantization_config"):
        raise ModelError(
            "E-MODEL-102", "the weights are already quantised (quantization_config)", fix="Use the model's 16-bit weights"
        )


def _rope_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary settings as one dictionary, wherever the file keeps them."""
    nested = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(nested, dict):
        raise _refusal(f"rope_scaling is {nested!r}; expected keys and values")
    unknown = sorted(set(nested) - _ROPE_KEYS)
    if unknown:
        raise _refusal(f"rope_scaling has the unknown keys {', '.join(unknown)}")
    rope = {key: raw[key] for key in ("rope_theta", "partial_rotary_factor")}
    rope |= {key: value for key, value in nested.items() if value is not None}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", *_LONGROPE_NAMES):
        raise _refusal(f"rope type is {kind!r}; expected default or longrope")
    rope["rope_type"] = "default" if kind == "default" else "longrope"
    return rope


def _longrope_from(rope: Mapping[str, Any], raw: Mapping[str, Any]) -> LongRope | None:
    if rope["rope_type"] == "default":
        return None
    original, longest = raw["original_max_position_embeddings"], raw["max_position_embeddings"]
    nested = rope.get("original_max_position_embeddings", original)
    if nested != original:
        raise _refusal(f"original_max_position_embeddings is {original!r}, but {nested!r} in rope_scaling")
    for key, value in (("original_max_position_embeddings", original), ("max_position_embeddings", longest)):
        _check_integer(key, value, 2, _LARGEST[key])
    for key in ("short_factor", "long_factor"):
        values = rope.get(key)
        if not isinstance(values, list) or not all(_is_positive(value) for value in values):
            raise _refusal(f"rope_scaling.{key} must be a list of numbers above 0")
    factor, attention_factor = rope.get("factor", longest / original), rope.get("attention_factor")
    if not _is_positive(factor):
        raise _refusal(f"rope_scaling.factor is {factor!r}; expected a number above 0")
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
    # Older readers accept these three keys and no other, so the factor is written only where it is not the usual one.
    if scaling.attention_factor != default_attention_factor(factor, config.original_max_position_embeddings):
        values["attention_factor"] = scaling.attention_factor
    return values


def _check_sizes(config: DecoderConfig) -> None:
    for key in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "original_max_position_embeddings",
    ):
        _check_integer(key, getattr(config, key), 1, _LARGEST.get(key, _LARGEST_SIZE))
    if config.sliding_window is not None:
        _check_integer("sliding_window", config.sliding_window, 1, 2**31)
    if type(config.tie_word_embeddings) is not bool:
        raise _refusal(f"tie_word_embeddings is {config.tie_word_embeddings!r}; expected true or false")
    for key in ("rms_norm_eps", "rope_theta", "partial_rotary_factor"):
        if not _is_positive(getattr(config, key)):
            raise _refusal(f"{key} is {getattr(config, key)!r}; expected a number above 0")
    if config.hidden_act != "silu":
        raise _refusal(f'hidden_act is {config.hidden_act!r}; only "silu" is supported')
    if config.hidden_size % config.num_attention_heads:
        raise _refusal(f"hidden_size {config.hidden_size} is no multiple of {config.num_attention_heads} heads")
    if config.num_attention_heads % config.num_key_value_heads:
        raise _refusal(f"{config.num_attention_heads} heads are no multiple of {config.num_key_value_heads} kv heads")
    if config.partial_rotary_factor > 1 or config.rotary_dim < 2 or config.rotary_dim % 2:
        raise _refusal(f"{config.rotary_dim} of {config.head_dim} head elements would be rotated; expected an even part")
    _check_longrope(config)
    _check_token_ids(config)


def _check_longrope(config: DecoderConfig) -> None:
    scaling = config.rope_scaling
    if scaling is None:
        return
    for key, values in (("short_factor", scaling.short_factor), ("long_factor", scaling.long_factor)):
        if len(values) != config.rotary_dim // 2:
            raise _refusal(f"rope_scaling.{key} has {len(values)} numbers; expected {config.rotary_dim // 2}")
    if not _is_positive(scaling.attention_factor):
        raise _refusal(f"rope_scaling.attention_factor is {scaling.attention_factor!r}; expected a number above 0")


def _check_token_ids(config: DecoderConfig) -> None:
    eos = config.eos_token_id
    for key, ids in (
        ("bos_token_id", (config.bos_token_id,)),
        ("eos_token_id", eos if isinstance(eos, tuple) else (eos,)),
        ("pad_token_id", (config.pad_token_id,)),
    ):
        for token_id in ids:
            if token_id is not None:
                _check_integer(key, token_id, 0, _LARGEST_SIZE)


def _check_integer(key: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise _refusal(f"{key} is {value!r}; expected an integer from {least} to {most}")


def _is_positive(value: object) -> bool:
    # The bound also refuses NaN and infinity, and integers too long to become a float.
    return type(value) in (int, float) and 0 < value < 1e30  # type: ignore[operator]


def _given(raw: Mapping[str, Any], key: str, default: Any) -> Any:
    return default if raw.get(key) is None else raw[key]


def _refusal(message: str) -> ModelError:
    return ModelError("E-MODEL-120", message, fix="Correct config.json, or download the model again")
