"""Qwen3 (dense): what its config.json says and means.

Source: Yang et al. 2025, arXiv:2505.09388; reference implementation: transformers' models/qwen3.
"""

from dataclasses import replace

from lorakeet.models.families import qwen2

FAMILY = replace(
    qwen2.FAMILY,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    defaults={**qwen2.FAMILY.defaults, "head_dim": 128, "attention_bias": False},
    keys={"qkv_bias": "attention_bias", "o_bias": "attention_bias"},
    fixed={"has_qk_norm": True},
)
