"""SmolLM3: what its config.json says and means.

Reference implementation: transformers' models/smollm3.
"""

from typing import Any

from lorakeet.models.config import DecoderConfig, check_integer, refusal
from lorakeet.models.families.shared import Family, Raw, read_windows, write_windows


def _read_layers(raw: Raw) -> dict[str, Any]:
    """Every fourth layer is not rotated; in files that ask for a window, those have it."""
    count, rotated, interval = raw["num_hidden_layers"], raw.get("no_rope_layers"), raw["no_rope_layer_interval"]
    if rotated is None:
        check_integer("no_rope_layer_interval", interval, 1, 1024)
        rotated = [int((layer + 1) % interval != 0) for layer in range(count)]
    if not isinstance(rotated, list) or any(value not in (0, 1) for value in rotated) or len(rotated) < count:
        raise refusal(f"no_rope_layers must be a list of 0 and 1, one for each of {count} layers")
    plain = tuple(layer for layer in range(count) if not rotated[layer])
    window = raw["sliding_window"] if raw["use_sliding_window"] else None
    kinds = raw.get("layer_types") if window else None
    windows = read_windows({**raw, "sliding_window": window, "layer_types": kinds}, lambda layer: layer not in plain)
    return windows | {"unrotated_layers": plain}


def _write_layers(config: DecoderConfig) -> dict[str, Any]:
    rotated = [int(layer not in config.unrotated_layers) for layer in range(config.num_hidden_layers)]
    has_window = config.sliding_window is not None
    return write_windows(config) | {"no_rope_layers": rotated, "use_sliding_window": has_window}


FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    defaults={
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "pad_token_id": 128004,
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layer_interval": 4,
    },
    keys={"qkv_bias": "attention_bias", "o_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    read_layers=_read_layers,
    write_layers=_write_layers,
)
