"""What llama.cpp computes for each family, and where it wants a model's numbers: one table that files and refusals go by.

data in: a model's description, its tensors under their checkpoint's names → out: llama.cpp's architecture, names, rows and
values; what of a model it would compute otherwise. Facts of llama.cpp's src/models/ and conversion/:

- Where pairs of a head are neighbours (`llama`, `smollm3`), the rows of q and k are reordered; elsewhere they are halves of
  a head, as in this decoder. Norms that multiply by 1 + weight are written with the 1 added.
- Sliding windows exist for Gemma alone, with one layer in so many that sees everything.
- Gemma's scores are divided by the root of a head's width, but for the 27B, which it knows by its number of layers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lorakeet.models.config import DecoderConfig, LinearRope, Llama3Rope, LongRope, YarnRope

EMBEDDING, OUTPUT = "token_embd", "output"
_OUTSIDE = {"model.embed_tokens": EMBEDDING, "model.norm": "output_norm", "lm_head": OUTPUT}
_INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WITH_POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What llama.cpp computes for a family; what is left out is the usual."""

    name: str
    only: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a description with the only value that it computes."""
    ropes: tuple[type, ...] = (LinearRope, YarnRope)
    rotates_neighbours: bool = False
    has_windows: bool = False
    has_softcaps: bool = False
    """Whether it always caps scores and logits."""
    unrotated_step: int = 0
    """One layer in so many knows no positions; 0 for none."""
    layers_of_27b: int = 0


_SILU, _GELU = {"hidden_act": "silu"}, {"hidden_act": "gelu_pytorch_tanh"}
_NO_BIAS = {"o_bias": False}
_LLAMA = Architecture(name="llama", only=_SILU, ropes=(LinearRope, YarnRope, Llama3Rope), rotates_neighbours=True)
ARCHITECTURES = {
    "phi3": Architecture(name="phi3", ropes=(LongRope,)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "ministral": _LLAMA,
    "qwen2": Architecture(name="qwen2", only=_SILU),
    "qwen3": Architecture(name="qwen3", only=_SILU | _NO_BIAS),
    "gemma2": Architecture(
        name="gemma2",
        only=_GELU | _NO_BIAS | {"tie_word_embeddings": True},
        has_windows=True,
        has_softcaps=True,
        layers_of_27b=46,
    ),
    "gemma3_text": Architecture(name="gemma3", only=_GELU | _NO_BIAS, has_windows=True, layers_of_27b=62),
    "smollm3": Architecture(
        name="smollm3", only=_SILU | _NO_BIAS | {"mlp_bias": False}, rotates_neighbours=True, unrotated_step=4
    ),
}
"""llama.cpp's architecture by a model's family."""


def architecture(config: DecoderConfig) -> Architecture:
    """Return what llama.cpp computes for a model of this family."""
    return ARCHITECTURES[config.family]


def differences(config: DecoderConfig) -> Iterator[str]:
    """Return what of a model llama.cpp would compute otherwise, or refuse to load, a phrase each."""
    arch = architecture(config)
    for key, value in arch.only.items():
        if getattr(config, key) != value:
            yield f"{key} is {getattr(config, key)!r}, not {value!r}"
    scaling = config.rope_scaling
    if scaling is not None and not isinstance(scaling, arch.ropes):
        yield f"positions are scaled by {type(scaling).__name__}"
    if isinstance(scaling, YarnRope) and not scaling.truncate:
        yield "yarn's ramp is not rounded to whole pairs"
    if config.attention_scale is not None and config.query_pre_attn_scalar != _score_divisor(config):
        yield f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, not {_score_divisor(config)}"
    if arch.has_softcaps and None in (config.attn_logit_softcapping, config.final_logit_softcapping):
        yield "a soft cap is missing"
    if arch.has_windows and window_step(config) is None:
        yield "the layers without a sliding window are not every second one, or every third and so on"
    if config.unrotated_layers != _every(arch.unrotated_step, config):
        yield f"the layers that know no positions are not every {arch.unrotated_step}th"


def _score_divisor(config: DecoderConfig) -> int:
    """Return by the root of what llama.cpp divides scores."""
    is_27b = config.num_hidden_layers == architecture(config).layers_of_27b
    return config.hidden_size // config.num_attention_heads if is_27b else config.head_dim


def window_step(config: DecoderConfig) -> int | None:
    """Return s if every s-th layer, and no other, sees everything: 0 if none does, None for any other pattern."""
    steps = range(config.num_hidden_layers + 1) if config.sliding_window is not None else ()
    return next((step for step in steps if config.full_layers == _every(step, config)), None)


def _every(step: int, config: DecoderConfig) -> tuple[int, ...]:
    """Return every `step`-th layer; none for 0."""
    return tuple(range(step - 1, config.num_hidden_layers, step)) if step else ()


def gguf_name(path: str, config: DecoderConfig) -> str:
    """Return llama.cpp's name for a module, by its path in the model's checkpoint."""
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    _, _, number, inner = path.split(".", 3)
    names = _INSIDE | _WITH_POST_NORMS if config.has_post_norms else _INSIDE
    return f"blk.{number}.{names[inner]}"


def as_llama_cpp_has_it(path: str, rows: torch.Tensor, config: DecoderConfig) -> torch.Tensor:
    """Return a weight, a bias or a LoRA's B of the module at `path` with the rows and values that llama.cpp expects."""
    if config.norms_add_one and path.endswith("norm"):
        return rows + 1
    if architecture(config).rotates_neighbours and path.endswith(("q_proj", "k_proj")):
        # The halves of a head, (heads, 2, pairs), become pairs, (heads, pairs, 2).
        halves = rows.reshape(-1, 2, config.head_dim // 2, *rows.shape[1:])
        return halves.transpose(1, 2).reshape(rows.shape)
    return rows
