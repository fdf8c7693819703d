"""What a run is configured with: `training_config` and `peft_config`, under the names the field already uses.

data in: dictionaries, YAML files, `section.key=value` overrides → out: frozen, validated pydantic models.
Unknown keys stop with the nearest known name; nothing is ever dropped silently.
"""

from lorakeet.config.lora import LoraConfig
from lorakeet.config.quantization import QuantizationConfig
from lorakeet.config.resolve import dump_yaml, pairs, resolve_config, to_values, with_overrides
from lorakeet.config.run import DataConfig, RunConfig
from lorakeet.config.training import TrainingConfig
from lorakeet.config.yaml_file import load_yaml

__all__ = [
    "DataConfig",
    "LoraConfig",
    "QuantizationConfig",
    "RunConfig",
    "TrainingConfig",
    "dump_yaml",
    "load_yaml",
    "pairs",
    "resolve_config",
    "to_values",
    "with_overrides",
]
