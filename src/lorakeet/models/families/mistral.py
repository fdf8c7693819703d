"""Mistral and Ministral: what their config.json says and means.

Source: Jiang et al. 2023, arXiv:2310.06825; reference implementations: transformers' models/mistral and models/ministral.
"""

from dataclasses import replace
from typing import Any

from lorakeet.models.config import DecoderConfig, refusal
from lorakeet.models.families.shared import Family, Raw, read_windows, write_windows


def _everywhere(layer: int) -> bool:
    """Every layer has the window, if there is one."""
    return False


def _read_one_window(raw: Raw) -> dict[str, Any]:
    """Mistral knows no kinds of layers: transformers passes over layer_types, and its window is that of all layers."""
    read = read_windows(raw, _everywhere)
    if read["sliding_window"] != raw["sliding_window"] or read.get("full_layers"):
        raise refusal('layer_types leaves the window out of some layers; that is model_type "ministral"')
    return read


def _write_one_window(config: DecoderConfig) -> dict[str, Any]:
    return {"sliding_window": config.sliding_window}


FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": 4096,
    },
    read_layers=_read_one_window,
    write_layers=_write_one_window,
)

MINISTRAL = replace(
    FAMILY,
    model_type="ministral",
    architecture="MinistralForCausalLM",
    read_layers=lambda raw: read_windows(raw, _everywhere),
    write_layers=write_windows,
)
