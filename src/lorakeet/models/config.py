"""The description of a decoder: its sizes, its rotary positions, its window.

data in: the values that a family's file (models/families/) reads off a config.json → out: a frozen, checked `DecoderConfig`.
What cannot be computed is refused, whichever family it comes from. No file is read or written here.
"""

from dataclasses import dataclass

from lorakeet.errors import ModelError

# Largest believable sizes: a config.json is a stranger's file, and building the model allocates by it.
LARGEST = {"num_hidden_layers": 1024, "max_position_embeddings": 2**31, "original_max_position_embeddings": 2**31}
_LARGEST_SIZE = 2**24


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
    """How large a Phi-3 decoder is and how it turns positions into rotations."""

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
        check_integer(key, getattr(config, key), 1, LARGEST.get(key, _LARGEST_SIZE))
    if config.sliding_window is not None:
        check_integer("sliding_window", config.sliding_window, 1, 2**31)
    if type(config.tie_word_embeddings) is not bool:
        raise refusal(f"tie_word_embeddings is {config.tie_word_embeddings!r}; expected true or false")
    for key in ("rms_norm_eps", "rope_theta", "partial_rotary_factor"):
        if not is_positive(getattr(config, key)):
            raise refusal(f"{key} is {getattr(config, key)!r}; expected a number above 0")
    if config.hidden_act != "silu":
        raise refusal(f'hidden_act is {config.hidden_act!r}; only "silu" is supported')
    if config.hidden_size % config.num_attention_heads:
        raise refusal(f"hidden_size {config.hidden_size} is no multiple of {config.num_attention_heads} heads")
    if config.num_attention_heads % config.num_key_value_heads:
        raise refusal(f"{config.num_attention_heads} heads are no multiple of {config.num_key_value_heads} kv heads")
    if config.partial_rotary_factor > 1 or config.rotary_dim < 2 or config.rotary_dim % 2:
        raise refusal(f"{config.rotary_dim} of {config.head_dim} head elements would be rotated; expected an even part")
    _check_longrope(config)
    _check_token_ids(config)


def _check_longrope(config: DecoderConfig) -> None:
    scaling = config.rope_scaling
    if scaling is None:
        return
    for key, values in (("short_factor", scaling.short_factor), ("long_factor", scaling.long_factor)):
        if len(values) != config.rotary_dim // 2:
            raise refusal(f"rope_scaling.{key} has {len(values)} numbers; expected {config.rotary_dim // 2}")
    if not is_positive(scaling.attention_factor):
        raise refusal(f"rope_scaling.attention_factor is {scaling.attention_factor!r}; expected a number above 0")


def _check_token_ids(config: DecoderConfig) -> None:
    eos = config.eos_token_id
    for key, ids in (
        ("bos_token_id", (config.bos_token_id,)),
        ("eos_token_id", eos if isinstance(eos, tuple) else (eos,)),
        ("pad_token_id", (config.pad_token_id,)),
    ):
        for token_id in ids:
            if token_id is not None:
                check_integer(key, token_id, 0, _LARGEST_SIZE)


def check_integer(key: str, value: object, least: int, most: int) -> None:
    """Raise ModelError unless `value` is an integer from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise refusal(f"{key} is {value!r}; expected an integer from {least} to {most}")


def is_positive(value: object) -> bool:
    """Tell whether `value` is a usable number above 0."""
    # The bound also refuses NaN and infinity, and integers too long to become a float.
    return type(value) in (int, float) and 0 < value < 1e30  # type: ignore[operator]


def refusal(message: str) -> ModelError:
    """Build the error for a value that no decoder here can have."""
    return ModelError("E-MODEL-120", message, fix="Correct config.json, or download the model again")
