"""A model's config.json, read and written by the family that its model_type names.

data in: a model directory → out: a DecoderConfig, and back to JSON. Code that a config.json points at (`auto_map`) is never
run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakeet.errors import ModelError
from lorakeet.models.config import DecoderConfig
from lorakeet.models.families import gemma2, gemma3, llama, mistral, phi3, qwen2, qwen3, smollm3
from lorakeet.models.families.shared import Family

FAMILIES: dict[str, Family] = {
    "phi3": phi3.FAMILY,
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "ministral": mistral.MINISTRAL,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "gemma2": gemma2.FAMILY,
    "gemma3_text": gemma3.FAMILY,
    "smollm3": smollm3.FAMILY,
}
"""What reads and writes a config.json, by its model_type."""
_UNSUPPORTED = {
    "_moe": "mixtures of experts are not supported",
    "mixtral": "mixtures of experts are not supported",
    "_vl": "vision models are not supported",
    "vision": "vision models are not supported",
    "phi3_v": "vision models are not supported",
    "gemma3": "of Gemma 3 only the text models (gemma3_text) are supported",
}
"""Why a model_type is refused, by what it is or ends in."""
MAX_JSON_BYTES = 16 * 2**20


def load_config(directory: Path) -> DecoderConfig:
    """Read `directory`/config.json.

    Raises: ModelError if it is missing, not JSON, of another model family, or impossible.
    """
    file = Path(directory) / "config.json"
    return config_from_json(read_json(file), str(file))


def config_from_json(raw: Mapping[str, Any], place: str) -> DecoderConfig:
    """Read the values of a config.json; `place` says in errors where they come from.

    Raises: ModelError, as `load_config`.
    """
    try:
        _check_family(raw)
        return FAMILIES[raw["model_type"]].from_json(raw)
    except ModelError as error:
        raise ModelError(error.code, error.message, place=place, fix=error.fix) from None


def config_to_json(config: DecoderConfig, dtype: str | None = None) -> dict[str, Any]:
    """Return the config.json of a model, in the spelling that every version of transformers reads.

    dtype: name of the weights' type, such as "bfloat16".
    """
    return FAMILIES[config.family].to_json(config, dtype)


def stored_parts(config: DecoderConfig) -> dict[str, dict[str, int]]:
    """Return the fused layers whose parts lie apart in the model's checkpoint, and the rows of each part, in order.

    They are {} for a checkpoint that has the fused layers themselves.
    """
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    rows = {"qkv_proj": (q, kv, kv), "gate_up_proj": (config.intermediate_size,) * 2}
    parts = FAMILIES[config.family].parts
    return {layer: dict(zip(names, rows[layer], strict=True)) for layer, names in parts.items()}


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a model directory.

    Raises: ModelError if the file is missing, too large, or no JSON object.
    """
    if not file.is_file():
        raise ModelError("E-MODEL-100", "no such file, or not a regular one", place=str(file), fix="Name a model directory")
    try:
        size = file.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelError("E-MODEL-101", f"is {size} bytes, more than {MAX_JSON_BYTES}", place=str(file))
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError("E-MODEL-101", f"cannot be read as JSON: {error}", place=str(file)) from None
    if not isinstance(value, dict):
        raise ModelError("E-MODEL-101", f"expected a JSON object, found {type(value).__name__}", place=str(file))
    return value


def _check_family(raw: Mapping[str, Any]) -> None:
    """Refuse families that are not supported, and what only somebody's own code could load.

    Microsoft's directories name their remote code in `auto_map` beside model_type "phi3"; those load with the
    decoder in this project, and the code is left alone.
    """
    found = raw.get("model_type")
    if not isinstance(found, str) or found not in FAMILIES:
        known = ", ".join(FAMILIES)
        if raw.get("auto_map"):
            raise ModelError(
                "E-MODEL-71",
                f"model_type is {found!r} and needs code of its own (auto_map), which is never run",
                fix=f"Use a model with one of these for its model_type: {known}",
            )
        why = next((f": {why}" for ending, why in _UNSUPPORTED.items() if str(found).endswith(ending)), "")
        raise ModelError(
            "E-MODEL-72",
            f"model_type is {found!r}{why or ', which is not supported'}",
            fix=f"Use demo, or a model with one of these for its model_type: {known}",
        )
    if raw.get("quantization_config"):
        raise ModelError(
            "E-MODEL-102", "the weights are already quantised (quantization_config)", fix="Use the model's 16-bit weights"
        )
