"""Qwen2 and Qwen2.5: what their config.json says and means.

Source: Yang et al. 2024, arXiv:2407.10671; reference implementation: transformers' models/qwen2.
"""

from typing import Any

from lorakeet.models.config import DecoderConfig, check_integer
from lorakeet.models.families.shared import Family, Raw, read_windows, write_windows


def read_last_layers(raw: Raw) -> dict[str, Any]:
    """Read the window of the last layers, which is off unless use_sliding_window says otherwise."""
    window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    first = raw["max_window_layers"]
    check_integer("max_window_layers", first, 0, 2**31)
    return read_windows({**raw, "sliding_window": window}, lambda layer: layer < first)


def write_last_layers(config: DecoderConfig) -> dict[str, Any]:
    """Return the same keys; max_window_layers is for versions of transformers that do not know layer_types."""
    first = len(config.full_layers) if config.sliding_window else config.num_hidden_layers
    return write_windows(config) | {"use_sliding_window": config.sliding_window is not None, "max_window_layers": first}


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    defaults={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "sliding_window": 4096,
        "use_sliding_window": False,
        "max_window_layers": 28,
    },
    fixed={"qkv_bias": True},
    read_layers=read_last_layers,
    write_layers=write_last_layers,
)
