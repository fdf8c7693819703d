"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: what their config.json says and means.

Source: Abdin et al. 2024, arXiv:2404.14219; reference implementation: transformers' models/phi3.
"""

from typing import Any

from lorakeet.models.config import DecoderConfig, refusal
from lorakeet.models.families.shared import Family, Raw, named_head_dim


def _read_window(raw: Raw) -> dict[str, Any]:
    if named_head_dim(raw) is not None:
        raise refusal(f"head_dim is {raw['head_dim']!r}; only hidden_size / num_attention_heads is supported")
    return {"sliding_window": raw.get("sliding_window")}


def _write_window(config: DecoderConfig) -> dict[str, Any]:
    keys = ("sliding_window", "partial_rotary_factor", "original_max_position_embeddings")
    return {key: getattr(config, key) for key in keys}


FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    defaults={
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
    },
    only={
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
        "attention_dropout": 0.0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    },
    names_head_dim=False,
    rope_kinds={"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"},
    read_layers=_read_window,
    write_layers=_write_window,
    parts={},
)
