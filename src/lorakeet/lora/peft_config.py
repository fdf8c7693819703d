"""adapter_config.json, PEFT's description of an adapter: LoraConfig → JSON and back.

data in: a LoraConfig → out: the dictionary PEFT writes; and the other way round, field by field from a whitelist.
Nothing in the file is imported, run or matched as a regular expression. A field that would change what the adapter
computes and is not supported here stops the load by name.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError, ConfigError
from lorakeet.files.durable import write_file

CONFIG_FILE = "adapter_config.json"
_MAX_BYTES = 4 * 1024 * 1024

# Fields that only say where things come from or how PEFT would run, not what is computed.
_INERT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
# Fields that would change the result; harmless only while they are off.
_UNSUPPORTED = {
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "velora_config",
}
# Ways to initialise that leave the base weight as it is, so that the saved A and B say everything.
_KEEPS_BASE = {"gaussian", "eva", "orthogonal"}
_NAME = re.compile(r"\^?[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")


def is_literal(name: object) -> bool:
    """Tell whether a target or pattern is a plain module name, not a regular expression."""
    return isinstance(name, str) and len(name) <= 512 and _NAME.fullmatch(name) is not None


def to_peft(config: LoraConfig, target_modules: list[str], base_model_name_or_path: str | None) -> dict[str, Any]:
    """Return the fields of adapter_config.json, sorted as PEFT sorts them."""
    fields = config.model_dump()
    fields.update(
        peft_type="LORA",
        target_modules=target_modules,
        exclude_modules=config.exclude_modules or None,
        base_model_name_or_path=base_model_name_or_path,
        auto_mapping=None,
        revision=None,
        inference_mode=True,
        # However the adapter began, what is saved is plain LoRA on the original weights.
        init_lora_weights=bool(config.init_lora_weights),
        eva_config=None,
    )
    # PEFT documents lora_alpha as an integer; a whole number is written as one.
    fields["lora_alpha"] = _whole(config.lora_alpha)
    fields["alpha_pattern"] = {name: _whole(alpha) for name, alpha in config.alpha_pattern.items()}
    return dict(sorted(fields.items()))


def write_config(directory: Path, fields: Mapping[str, Any]) -> None:
    """Write adapter_config.json, whole or not at all."""
    write_file(directory / CONFIG_FILE, (json.dumps(fields, indent=2, allow_nan=False) + "\n").encode())


def read_config(directory: Path) -> tuple[LoraConfig, bool]:
    """Return the LoraConfig of an adapter directory, and whether its target_modules are literal names.

    Where they are a regular expression it is not run; the caller takes the modules from the saved tensors.

    Raises:
        AdapterError: E-ADPT-67 for a required field that is missing or wrong, E-ADPT-103 for a field that is not
            supported, E-ADPT-104 for a file that is no JSON object.
    """
    path = directory / CONFIG_FILE
    fields = _read_json(path)
    if fields.get("peft_type") != "LORA":
        raise AdapterError(
            "E-ADPT-67", f"peft_type is {fields.get('peft_type')!r}; only LORA adapters can be loaded", place=str(path)
        )
    for name in ("r", "lora_alpha", "target_modules"):
        if fields.get(name) is None:
            raise AdapterError("E-ADPT-67", f"the field {name} is required", place=str(path))
    _refuse_unsupported(path, fields)
    return _from_fields(path, fields)


def base_model_of(directory: Path) -> str | None:
    """Return what an adapter directory calls its base model, if it does."""
    name = _read_json(directory / CONFIG_FILE).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def _from_fields(path: Path, fields: dict[str, Any]) -> tuple[LoraConfig, bool]:
    """Build the LoraConfig from the fields that carry over."""
    values = {name: value for name, value in fields.items() if name in LoraConfig.model_fields and value is not None}
    values.pop("eva_config", None)  # however it began, the file has A and B
    initial = values.get("init_lora_weights", True)
    if isinstance(initial, str):
        if initial not in _KEEPS_BASE:
            raise AdapterError(
                "E-ADPT-103",
                f"init_lora_weights is {initial!r}, which changes the base weights the adapter belongs to",
                place=str(path),
                fix="Convert it to a plain LoRA adapter with PEFT first",
            )
        values["init_lora_weights"] = True
    targets = values["target_modules"]
    literal = isinstance(targets, list) and all(map(is_literal, targets)) and len(targets) > 0
    if not literal:
        values["target_modules"] = "all-linear"
    for name in ("rank_pattern", "alpha_pattern"):
        bad = [key for key in values.get(name, {}) if not is_literal(key)]
        if bad:
            raise AdapterError(
                "E-ADPT-103",
                f"{name} has the regular expression {bad[0][:80]!r}; only module names are read",
                place=str(path),
                fix="Write the module names out",
            )
    if isinstance(values.get("exclude_modules"), str):
        # A regular expression again; the saved tensors say which modules were left out.
        literal = False
        del values["exclude_modules"]
    values.setdefault("task_type", None)
    try:
        return LoraConfig(**values), literal
    except ConfigError as error:
        field = error.place.removeprefix(f"{LoraConfig.section}.")
        raise AdapterError("E-ADPT-67", f"{field} {error.message}", place=str(path), fix=error.fix) from None


def _refuse_unsupported(path: Path, fields: dict[str, Any]) -> None:
    """Stop at fields that mean something this library would not compute."""
    for name, value in fields.items():
        if name in LoraConfig.model_fields or name in _INERT or value in (None, False, {}, []):
            continue
        known = name in _UNSUPPORTED
        raise AdapterError(
            "E-ADPT-103",
            f'the adapter uses "{name}", which is {"not supported" if known else "unknown"} and may change its result',
            place=str(path),
            fix="Train or convert the adapter without it",
        )


def _read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object, strictly."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise AdapterError("E-ADPT-104", f"the file is larger than {_MAX_BYTES} bytes", place=str(path))
        fields = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except FileNotFoundError:
        raise AdapterError("E-ADPT-105", "the file is missing", place=str(path), fix="Name an adapter directory") from None
    except AdapterError:
        raise
    except (ValueError, RecursionError) as error:
        raise AdapterError("E-ADPT-104", f"the file is not valid JSON: {error}", place=str(path)) from None
    if not isinstance(fields, dict):
        raise AdapterError("E-ADPT-104", "the file is not a JSON object", place=str(path))
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a repeated key, of which json would silently keep the last."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key is repeated")
    return fields


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _whole(number: float) -> float | int:
    """Return an int where the number is whole."""
    return int(number) if float(number).is_integer() else number
