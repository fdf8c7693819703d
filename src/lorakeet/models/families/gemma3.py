"""Gemma 3 without pictures: what its config.json says and means.

Source: Gemma Team 2025, arXiv:2503.19786; reference implementation: transformers' models/gemma3.
"""

from dataclasses import replace
from typing import Any

from lorakeet.models.config import DecoderConfig, check_integer, refusal
from lorakeet.models.families import gemma2
from lorakeet.models.families.rope import read_rope
from lorakeet.models.families.shared import FULL, SLIDING, Raw, read_windows, write_windows

_KEYS = {field: key for field, key in gemma2.FAMILY.keys.items() if field != "attn_logit_softcapping"}
_DEFAULTS = {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10_000.0,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}


def _flat(raw: Raw) -> Raw:
    """Return the file with both rotations where older files have them: that of full layers, and of layers with a window."""
    nested = raw.get("rope_parameters")
    if not isinstance(nested, dict) or not nested.keys() & {FULL, SLIDING}:
        return raw
    if nested.keys() - {FULL, SLIDING}:
        raise refusal(f"rope_parameters has the keys {', '.join(nested)}; expected {FULL} and {SLIDING}")
    flat = {**raw, "rope_parameters": None, "rope_scaling": None, "rope_theta": raw["rope_local_base_freq"]}
    local = read_rope({**flat, "rope_parameters": nested.get(SLIDING)}, {"default": "default"})["rope_theta"]
    return {**raw, "rope_parameters": nested.get(FULL), "rope_local_base_freq": local}


def _read_layers(raw: Raw) -> dict[str, Any]:
    """Every sixth layer sees everything, and is rotated by a theta of its own."""
    pattern = raw["sliding_window_pattern"]
    check_integer("sliding_window_pattern", pattern, 1, 1024)
    windows = read_windows(raw, lambda layer: (layer + 1) % pattern == 0)
    return windows | {"local_rope_theta": raw["rope_local_base_freq"]}


def _write_layers(config: DecoderConfig) -> dict[str, Any]:
    pattern = config.full_layers[0] + 1 if config.full_layers else 1024
    local = {"rope_local_base_freq": config.local_rope_theta, "sliding_window_pattern": pattern}
    return write_windows(config) | local


FAMILY = replace(
    gemma2.FAMILY,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    defaults={**gemma2.FAMILY.defaults, **_DEFAULTS},
    keys=_KEYS,
    fixed={**gemma2.FAMILY.fixed, "has_qk_norm": True},
    only={**gemma2.FAMILY.only, "attn_logit_softcapping": None},
    prepare=_flat,
    read_layers=_read_layers,
    write_layers=_write_layers,
)
