"""What a run is configured with: `training_config` and `peft_config`, under the names the field already uses.

data in: dictionaries, YAML files, `section.key=value` overrides → out: frozen, validated pydantic models.
Unknown keys stop with the nearest known name; nothing is ever dropped in silence.
"""

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorakeet.errors import ConfigError


class StrictModel(BaseModel):
    """A frozen model whose every complaint is a ConfigError that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _config_error(type(self), error) from None


def _config_error(model: type[BaseModel], error: ValidationError) -> ConfigError:
    """Turn pydantic's first complaint into our one line."""
    detail = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, model.model_fields, n=1)
        fix = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(sorted(model.model_fields))}"
        return ConfigError("E-CFG-31", f'unknown key "{key}"', place=model.__name__, fix=fix)
    return ConfigError(
        "E-CFG-37", f"{key} is {detail['input']!r}: {detail['msg']}", place=model.__name__, fix="Correct the value"
    )


class LoraConfig(StrictModel):
    """Say where LoRA goes and how large it is, with the names of peft.LoraConfig.

    The update of a layer is `scaling * B @ A` with `scaling = lora_alpha / r` (or `lora_alpha / sqrt(r)` with
    `use_rslora`), so doubling `lora_alpha` acts much like doubling the adapter's learning rate.
    Source: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
    """

    r: int = Field(16, ge=1, le=1024)
    """Rank of the update."""
    lora_alpha: float = Field(32, gt=0, allow_inf_nan=False)
    """Scale of the update before it is divided by the rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of the LoRA branch, while training."""
    target_modules: str | list[str] = "all-linear"
    """Module names (the last parts of their paths), or "all-linear" for every linear layer but the output head."""
    exclude_modules: list[str] = Field(default_factory=list)
    """Module names never to touch."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases train along."""
    modules_to_save: list[str] | None = None
    """Modules trained in full and saved with the adapter."""
    use_rslora: bool = False
    """Divide lora_alpha by sqrt(r) instead of r."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Ranks of single modules: {module path or its end: r}."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """lora_alpha of single modules: {module path or its end: lora_alpha}."""
    layers_to_transform: list[int] | int | None = None
    """Only these layer indices."""
    layers_pattern: str | list[str] | None = None
    """Name of the list of layers that layers_to_transform counts in, where it is not found by itself."""
    fan_in_fan_out: bool = False
    """The replaced layers store their weight as (in, out), as GPT-2's Conv1D does."""
    init_lora_weights: bool = True
    """Start as the identity: A random, B zero. False draws B at random too, which only tests want."""
    task_type: str | None = "CAUSAL_LM"
    """Written to adapter_config.json for PEFT; None for modules that are no language model."""
