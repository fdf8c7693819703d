"""Training that starts from an adapter made elsewhere.

data in: a model, an adapter directory, the peft_config of the run → out: the peft_config to train with. What shapes an
adapter (layers, ranks, scales, DoRA) is the adapter's; dropout is the run's. What the run asks for otherwise stops it.
"""

import hashlib
from typing import Any

from torch import nn

from lorakeet.adapters.adapter_file import find_adapter
from lorakeet.config import LoraConfig
from lorakeet.errors import ConfigError
from lorakeet.files.hashing import file_sha256
from lorakeet.lora.adapter import config_for, weights_path
from lorakeet.lora.peft_config import CONFIG_FILE
from lorakeet.lora.targets import find_targets

_RUNS_OWN = {"lora_dropout", "task_type"}
"""Keys in which the run may differ from the adapter."""


def started_from(model: nn.Module, adapter: str, given: LoraConfig) -> LoraConfig:
    """Return the adapter's configuration with the run's dropout.

    Raises: AdapterError, as `load_adapter`; ConfigError E-CFG-173 for a key of the run that the adapter has otherwise.
    """
    found = config_for(model, find_adapter(adapter))
    said = {key: getattr(given, key) for key in given.model_fields_set}
    if isinstance(said.get("init_lora_weights"), str):
        raise _differs("init_lora_weights", said["init_lora_weights"], "A and B of its own")
    shape = {key: value for key, value in said.items() if key not in _RUNS_OWN and key != "init_lora_weights"}
    for key, value in shape.items():
        if getattr(found, key) != value and not _is_the_same(model, found, key, value):
            raise _differs(key, value, repr(getattr(found, key)))
    return found.model_copy(update={key: said[key] for key in _RUNS_OWN if key in said})


def adapter_hash(adapter: str) -> str:
    """Return the SHA-256 of an adapter's weights and configuration."""
    folder = find_adapter(adapter)
    return hashlib.sha256("".join(map(file_sha256, (weights_path(folder), folder / CONFIG_FILE))).encode()).hexdigest()


def _is_the_same(model: nn.Module, found: LoraConfig, key: str, value: Any) -> bool:
    """Tell whether a key only says in other words which layers there are, such as "all-linear" for all their names."""
    try:
        mine, other = (
            {(target.path, target.r, target.scaling) for target, _ in find_targets(model, config)}
            for config in (found, found.model_copy(update={key: value}))
        )
    except ConfigError:
        return False
    return (
        key in ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "r", "lora_alpha")
        and mine == other
    )


def _differs(key: str, value: object, other: str) -> ConfigError:
    return ConfigError(
        "E-CFG-173",
        f"is {value!r}, and the adapter to start from has {other}",
        place=f"peft_config.{key}",
        fix="Leave it out, or start without --adapter",
    )
