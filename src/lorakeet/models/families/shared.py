"""What the tables of all families have in common: how they are read, and written again.

data in: a family's table and a config.json → out: a DecoderConfig, and back. A key that would make the model compute
something else than the decoder here computes is refused, not ignored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakeet.models.config import DecoderConfig, check_integer, refusal
from lorakeet.models.families.rope import EVERY, Kinds, read_rope, write_rope

Raw = Mapping[str, Any]
SPLIT: Mapping[str, Sequence[str]] = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""The decoder's fused layers and the names that their parts have in most checkpoints."""
SLIDING, FULL = "sliding_attention", "full_attention"

# Fields of every family, which have the names of their keys.
_EVERYWHERE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
)
_ONLY = {"attention_dropout": 0.0, "partial_rotary_factor": 1.0}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a family's config.json says and means, and what its checkpoints are like."""

    model_type: str
    architecture: str
    defaults: Raw
    """What transformers assumes of a file that leaves a key out."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Further fields of the description, with the keys that they stand under."""
    fixed: Raw = field(default_factory=dict)
    """Fields that are the same in all its models."""
    only: Raw = field(default_factory=lambda: _ONLY)
    """Keys that would change what is computed, with the only value that is supported."""
    names_head_dim: bool = True
    """Whether its config.json says how wide a head is."""
    rope_kinds: Kinds = field(default_factory=lambda: EVERY)
    prepare: Callable[[Raw], Raw] = lambda raw: raw
    """Turns a spelling that only this family has into the usual one."""
    read_layers: Callable[[Raw], dict[str, Any]] = lambda raw: {}
    """Reads the fields that say what differs from layer to layer."""
    write_layers: Callable[[DecoderConfig], dict[str, Any]] = lambda config: {}
    parts: Mapping[str, Sequence[str]] = field(default_factory=lambda: SPLIT)
    """The fused layers whose parts lie apart in a checkpoint, and their names there."""

    def from_json(self, raw: Raw) -> DecoderConfig:
        """Read the values of a config.json of this family.

        Raises: ModelError if they would make the model compute something else than the decoder here computes.
        """
        raw = self.prepare({"hidden_act": "silu", **self.defaults, **raw})
        refuse_other_values(raw, self.only)
        values = {name: raw.get(name) for name in _EVERYWHERE} | {"hidden_act": raw["hidden_act"]}
        values |= {name: raw.get(key) for name, key in self.keys.items()}
        if values["num_key_value_heads"] is None:
            values["num_key_value_heads"] = values["num_attention_heads"]
        if isinstance(values["eos_token_id"], list):
            values["eos_token_id"] = tuple(values["eos_token_id"])
        check_integer("num_hidden_layers", values["num_hidden_layers"], 1, 1024)
        values |= read_rope(raw, self.rope_kinds) | self.read_layers(raw)
        return DecoderConfig(**{**values, **self.fixed, "explicit_head_dim": named_head_dim(raw), "family": self.model_type})

    def to_json(self, config: DecoderConfig, dtype: str | None = None) -> dict[str, Any]:
        """Return the config.json of a model, in the spelling that every version of transformers reads.

        dtype: name of the weights' type, such as "bfloat16".
        """
        values: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type}
        values |= {name: getattr(config, name) for name in (*_EVERYWHERE, "hidden_act")}
        values |= {key: getattr(config, name) for name, key in self.keys.items()}
        if isinstance(config.eos_token_id, tuple):
            values["eos_token_id"] = list(config.eos_token_id)
        values |= {"head_dim": config.head_dim} if self.names_head_dim else {}
        values |= write_rope(config) | self.write_layers(config)
        if dtype is not None:
            values |= {"dtype": dtype, "torch_dtype": dtype}  # the latter for versions before 4.56
        return values


def refuse_other_values(raw: Raw, only: Raw) -> None:
    """Refuse keys with another value than the only one under which the decoder computes what the model computes."""
    for key, value in only.items():
        found = raw.get(key, value)
        if found != value and not (found is None and not value):
            raise refusal(f"{key} is {found!r}; only {value!r} is supported")


def named_head_dim(raw: Raw) -> Any:
    """Return the width of a head that the file names, or None if it is the one that follows from the other sizes."""
    width, heads = raw.get("head_dim"), raw.get("num_attention_heads")
    follows = type(width) is int and type(heads) is int and width * heads == raw.get("hidden_size")
    return None if follows else width


def read_windows(raw: Raw, is_full: Callable[[int], bool]) -> dict[str, Any]:
    """Read the sliding window and the layers without it: those of `layer_types`, or else by the family's rule.

    Raises: ModelError if layer_types is no list of one of the two kinds for each layer.
    """
    count, window, kinds = raw["num_hidden_layers"], raw.get("sliding_window"), raw.get("layer_types")
    if kinds is None:
        kinds = [FULL if window is None or is_full(layer) else SLIDING for layer in range(count)]
    if not isinstance(kinds, list) or any(kind not in (FULL, SLIDING) for kind in kinds):
        raise refusal(f"layer_types must be a list of {SLIDING} and {FULL}")
    if len(kinds) != count:
        raise refusal(f"layer_types names {len(kinds)} layers; expected {count}")
    full = tuple(layer for layer, kind in enumerate(kinds) if kind == FULL)
    if len(full) == count:
        return {"sliding_window": None}
    if window is None:
        raise refusal("layer_types names sliding_attention, but sliding_window is missing")
    return {"sliding_window": window, "full_layers": full}


def write_windows(config: DecoderConfig) -> dict[str, Any]:
    """Return the window and the kind of each layer, as `read_windows` reads them."""
    kinds = [FULL if config.window(layer) is None else SLIDING for layer in range(config.num_hidden_layers)]
    return {"sliding_window": config.sliding_window, "layer_types": kinds}
