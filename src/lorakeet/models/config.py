"""The description that the decoder is built from: sizes, norms, biases, what each layer sees and how it rotates.

data in: the values that a family's table (models/families/) reads off a config.json → out: a frozen, checked `DecoderConfig`.
What cannot be computed is refused, whichever family it comes from. No file is read or written here.
"""

from dataclasses import dataclass

from lorakeet.errors import ModelError

# Largest believable sizes: a config.json is a stranger's file, and building the model allocates by it.
LARGEST = {"num_hidden_layers": 1024, "max_position_embeddings": 2**31, "original_max_position_embeddings": 2**31}
_LARGEST_SIZE = 2**24
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class LinearRope:
    """All rotary frequencies divided by one factor (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True)
class Llama3Rope:
    """Low rotary frequencies divided by a factor, high ones kept, those between mixed (Grattafiori et al. 2024)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class YarnRope:
    """Pairs that turn slowly are divided by a factor, fast ones kept, a ramp between (Peng et al. 2023, arXiv:2309.00071)."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    """Cosines and sines are multiplied by it."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Whether the ends of the ramp are rounded to whole pairs."""


@dataclass(frozen=True)
class LongRope:
    """Rotary frequencies divided by one set of factors up to the original length, by another beyond it.

    Source: Ding et al. 2024, arXiv:2402.13753.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    attention_factor: float
    """Cosines and sines are multiplied by it, in short documents too."""


RopeScaling = LinearRope | Llama3Rope | YarnRope | LongRope


@dataclass(frozen=True)
class Rotary:
    """How a layer turns positions into rotations."""

    theta: float
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class DecoderConfig:
    """How large a decoder is and what its layers compute; what is left out is Phi-3's."""

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
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    """How many tokens a query sees, its own included; None for all before it."""
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 32000
    pad_token_id: int | None = 32000
    hidden_act: str = "silu"
    """What the gate goes through: silu, or gelu_pytorch_tanh."""
    family: str = "phi3"
    """The model_type under which the model is read and written."""
    explicit_head_dim: int | None = None
    """Width of a head, if it is not hidden_size / num_attention_heads."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    has_qk_norm: bool = False
    """Whether queries and keys are normalised, head by head, before they are rotated."""
    norms_add_one: bool = False
    """Whether norms multiply by 1 + weight instead of by the weight."""
    has_post_norms: bool = False
    """Whether attention and MLP are normalised after they have computed, too, before they are added."""
    scales_embeddings: bool = False
    """Whether embeddings are multiplied by the square root of hidden_size."""
    query_pre_attn_scalar: float | None = None
    """Scores are divided by its square root; None for the width of a head."""
    attn_logit_softcapping: float | None = None
    """Scores s become cap · tanh(s / cap)."""
    final_logit_softcapping: float | None = None
    """Logits likewise."""
    full_layers: tuple[int, ...] = ()
    """Layers that see all tokens, although the model has a sliding window."""
    unrotated_layers: tuple[int, ...] = ()
    """Layers that know nothing of positions."""
    local_rope_theta: float | None = None
    """The theta of layers with a window, which have no scaling, if it is another one than that of the rest."""

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        return self.explicit_head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Return the number of elements of a head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def switch_length(self) -> int | None:
        """Return the longest document of LongRoPE's short factors: longer ones are rotated differently from the start."""
        return self.original_max_position_embeddings if isinstance(self.rope_scaling, LongRope) else None

    @property
    def attention_scale(self) -> float | None:
        """Return what scores are multiplied by; None for 1/sqrt(head_dim)."""
        return None if self.query_pre_attn_scalar is None else float(self.query_pre_attn_scalar) ** -0.5

    def window(self, layer: int) -> int | None:
        """Return how many tokens a query of this layer sees; None for all before it."""
        return None if layer in self.full_layers else self.sliding_window

    def rotary(self, layer: int) -> Rotary | None:
        """Return how this layer rotates; None for not at all."""
        if layer in self.unrotated_layers:
            return None
        if self.local_rope_theta is not None and self.window(layer) is not None:
            return Rotary(self.local_rope_theta)
        return Rotary(self.rope_theta, self.rope_scaling)

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_kinds(self)
        _check_layers(self)
        _check_rope(self)
        _check_token_ids(self)


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
    for key in ("rms_norm_eps", "rope_theta", "partial_rotary_factor"):
        _check_positive(key, getattr(config, key))
    for key in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "local_rope_theta"):
        if getattr(config, key) is not None:
            _check_positive(key, getattr(config, key))
    if config.explicit_head_dim is not None:
        check_integer("head_dim", config.explicit_head_dim, 1, _LARGEST_SIZE)
    elif config.hidden_size % config.num_attention_heads:
        raise refusal(f"hidden_size {config.hidden_size} is no multiple of {config.num_attention_heads} heads")
    if config.num_attention_heads * config.head_dim > _LARGEST_SIZE:
        raise refusal(f"{config.num_attention_heads} heads of {config.head_dim} are wider than {_LARGEST_SIZE}")
    if config.num_attention_heads % config.num_key_value_heads:
        raise refusal(f"{config.num_attention_heads} heads are no multiple of {config.num_key_value_heads} kv heads")
    if config.partial_rotary_factor > 1 or config.rotary_dim < 2 or config.rotary_dim % 2:
        raise refusal(f"{config.rotary_dim} of {config.head_dim} head elements would be rotated; expected an even part")


def _check_kinds(config: DecoderConfig) -> None:
    for key in (
        "tie_word_embeddings",
        "qkv_bias",
        "o_bias",
        "mlp_bias",
        "has_qk_norm",
        "norms_add_one",
        "has_post_norms",
        "scales_embeddings",
    ):
        if type(getattr(config, key)) is not bool:
            raise refusal(f"{key} is {getattr(config, key)!r}; expected true or false")
    if config.hidden_act not in ACTIVATIONS:
        raise refusal(f"hidden_act is {config.hidden_act!r}; expected {' or '.join(ACTIVATIONS)}")


def _check_layers(config: DecoderConfig) -> None:
    for key in ("full_layers", "unrotated_layers"):
        for layer in getattr(config, key):
            check_integer(f"a layer of {key}", layer, 0, config.num_hidden_layers - 1)
    if config.full_layers and config.sliding_window is None:
        raise refusal(f"sliding_window is None, but only the layers {config.full_layers} are to see everything")


def _check_rope(config: DecoderConfig) -> None:
    scaling = config.rope_scaling
    if isinstance(scaling, LongRope):
        for key, values in (("short_factor", scaling.short_factor), ("long_factor", scaling.long_factor)):
            if len(values) != config.rotary_dim // 2:
                raise refusal(f"rope_scaling.{key} has {len(values)} numbers; expected {config.rotary_dim // 2}")
    elif isinstance(scaling, Llama3Rope | YarnRope):
        key = "original_max_position_embeddings"
        check_integer(f"rope_scaling.{key}", scaling.original_max_position_embeddings, 2, LARGEST[key])
    for key in ("factor", "attention_factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
        if hasattr(scaling, key):
            _check_positive(f"rope_scaling.{key}", getattr(scaling, key))
    if isinstance(scaling, Llama3Rope) and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise refusal(f"rope_scaling.high_freq_factor is {scaling.high_freq_factor!r}; expected more than low_freq_factor")
    if isinstance(scaling, YarnRope) and (type(scaling.truncate) is not bool or config.rope_theta <= 1):
        raise refusal("rope_scaling of type yarn needs a rope_theta above 1, and true or false for truncate")


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


def _check_positive(key: str, value: object) -> None:
    if not is_positive(value):
        raise refusal(f"{key} is {value!r}; expected a number above 0")


def is_positive(value: object) -> bool:
    """Tell whether `value` is a usable number above 0."""
    # The bound also refuses NaN and infinity, and integers too long to become a float.
    return type(value) in (int, float) and 0 < value < 1e30  # type: ignore[operator]


def refusal(message: str) -> ModelError:
    """Build the error for a value that no decoder here can have."""
    return ModelError("E-MODEL-120", message, fix="Correct config.json, or download the model again")
