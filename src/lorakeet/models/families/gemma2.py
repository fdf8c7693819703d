"""Gemma 2: what its config.json says and means.

Source: Gemma Team 2024, arXiv:2408.00118; reference implementation: transformers' models/gemma2.
"""

from typing import Any

from lorakeet.models.families.rope import PLAIN
from lorakeet.models.families.shared import Family, Raw, read_windows, write_windows


def _read_every_other(raw: Raw) -> dict[str, Any]:
    """The window is that of every other layer, of the first too."""
    return read_windows(raw, lambda layer: layer % 2 == 1)


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    defaults={
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    keys={
        "hidden_act": "hidden_activation",
        "qkv_bias": "attention_bias",
        "o_bias": "attention_bias",
        "query_pre_attn_scalar": "query_pre_attn_scalar",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    fixed={"norms_add_one": True, "has_post_norms": True, "scales_embeddings": True},
    only={"attention_dropout": 0.0, "use_bidirectional_attention": False, "partial_rotary_factor": 1.0},
    rope_kinds=PLAIN,
    read_layers=_read_every_other,
    write_layers=write_windows,
)
