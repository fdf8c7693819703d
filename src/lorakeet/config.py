"""What a run is configured with: `training_config` and `peft_config`, under the names the field already uses.

data in: dictionaries, YAML files, `section.key=value` overrides → out: frozen, validated pydantic models.
Unknown keys stop with the nearest known name; nothing is ever dropped in silence.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

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
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # a validator of ours, which has said it all
        return cause
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

    r: int = Field(default=16, ge=1, le=1024)
    """Rank of the update."""
    lora_alpha: float = Field(default=32, gt=0, allow_inf_nan=False)
    """Scale of the update before it is divided by the rank."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the LoRA branch, while training."""
    target_modules: str | list[str] = "all-linear"
    """Module names (the last parts of their paths), or "all-linear" for every linear layer but the output head.

    Names are literal; a regular expression is refused, since it can match by accident or stall."""
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

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        targets = [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules
        if not targets:
            raise ConfigError("E-CFG-42", "target_modules is empty", place="LoraConfig", fix='Use "all-linear"')
        for key in ("exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern"):
            _require_names(key, getattr(self, key) or ())
        _require_names("target_modules", targets)
        patterns = self.layers_pattern or []
        _require_names("layers_pattern", [patterns] if isinstance(patterns, str) else patterns)
        for key, r in self.rank_pattern.items():
            if not 1 <= r <= 1024:
                raise _out_of_range(f"rank_pattern.{key}", r, "1 to 1024")
        for key, alpha in self.alpha_pattern.items():
            if not (0 < alpha < math.inf):
                raise _out_of_range(f"alpha_pattern.{key}", alpha, "a number above 0")


def _require_names(key: str, names: Iterable[str]) -> None:
    """Refuse whatever is not a literal module name; PEFT lets a leading ^ of a pattern demand the whole path."""
    for name in names:
        plain = name.removeprefix("^") if key.endswith("_pattern") else name
        if not all(part.replace("-", "").replace("_", "").isalnum() for part in plain.split(".")):
            raise ConfigError(
                "E-CFG-43",
                f"{name[:80]!r} is not a module name",
                place=f"LoraConfig {key}",
                fix="List the names; regular expressions are not read",
            )


def _out_of_range(key: str, value: float, allowed: str) -> ConfigError:
    return ConfigError("E-CFG-37", f"{key} is {value!r}", place="LoraConfig", fix=f"Use {allowed}")


class TrainingConfig(StrictModel):
    """Say how to train, with the names of transformers.TrainingArguments and trl.SFTConfig."""

    output_dir: str | None = None
    """Where the run is written; a new folder under runs/ where none is named."""
    num_train_epochs: float = Field(3.0, gt=0, allow_inf_nan=False)
    """Passes over the training rows."""
    max_steps: int = Field(-1, ge=-1)
    """Optimizer steps in place of epochs; -1 counts epochs."""
    per_device_train_batch_size: int = Field(8, ge=1)
    """Conversations in one forward and backward pass of a process."""
    per_device_eval_batch_size: int = Field(8, ge=1)
    """The same for evaluation."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Passes whose gradients add up to one optimizer step."""
    learning_rate: float = Field(2e-4, gt=0, allow_inf_nan=False)
    """Peak learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """How the learning rate falls after warm-up."""
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Part of all steps over which the learning rate rises from zero."""
    warmup_steps: int = Field(0, ge=0)
    """The same as a number of steps; where it is not 0 it wins."""
    optim: Literal[
        "adamw_torch_fused", "adamw_torch", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
        "adafactor", "lion", "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit", "schedule_free_adamw",
    ] = "adamw_torch_fused"  # fmt: skip
    """The optimizer."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Decoupled weight decay; biases and norms never decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment, of AdamW, Lion and schedule-free AdamW."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to AdamW's denominator."""
    loraplus_lr_ratio: float | None = Field(None, gt=0, allow_inf_nan=False)
    """LoRA+: lora_B learns this many times as fast as lora_A; the paper advises 16, at about half the usual rate."""
    loraplus_lr_embedding: float = Field(1e-6, gt=0, allow_inf_nan=False)
    """LoRA+: learning rate of adapters on embeddings."""
    max_grad_norm: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Largest norm of a step's gradient; 0 leaves it alone."""
    max_length: int | None = Field(None, ge=8)
    """Longest conversation in tokens; the model's own limit where none is given."""
    packing: bool = False
    """Fill rows of max_length tokens with whole conversations, best-fit; batch sizes then count rows."""
    logging_steps: int = Field(10, ge=1)
    """Optimizer steps between rows of metrics.jsonl."""
    eval_strategy: Literal["no", "steps", "epoch"] = "epoch"
    """When held-out rows are evaluated; unless "no" it is done before the first and after the last step too."""
    eval_steps: int = Field(100, ge=1)
    """Optimizer steps between evaluations, with eval_strategy "steps"."""
    save_steps: int = Field(100, ge=1)
    """Optimizer steps between checkpoints."""
    save_total_limit: int = Field(2, ge=1)
    """Checkpoints kept; never fewer than the two newest, so that one damaged file loses little."""
    bf16: bool | None = None
    """Compute in bfloat16 (True) or float32 (False); chosen for this machine where nothing is said."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Seed of adapters, order and dropout."""

    @model_validator(mode="after")
    def _schedule_free_has_no_schedule(self) -> "TrainingConfig":
        if self.optim == "schedule_free_adamw" and not self.lr_scheduler_type.startswith("constant"):
            raise ConfigError(
                "E-CFG-142", f"schedule_free_adamw averages instead of following {self.lr_scheduler_type}",
                place="training_config.lr_scheduler_type",
                fix="Set lr_scheduler_type to constant or constant_with_warmup",
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _packing_needs_a_length(self) -> "TrainingConfig":
        if self.packing and self.max_length is None:
            raise ConfigError(
                "E-CFG-45", "packing fills rows of max_length tokens, and max_length is not set",
                place="training_config.packing", fix="Set max_length, for example 2048",
            )  # fmt: skip
        return self


class DataConfig(StrictModel):
    """Say what to learn from, and how its rows are read."""

    train: list[str] = Field(min_length=1)
    """Files, directories, hub ids, or "demo"."""
    eval: list[str] | None = None
    """Held-out data; where none is named, eval_fraction of the training rows is held out."""
    eval_fraction: float = Field(0.05, ge=0, lt=1)
    """Part of the rows that is held out, at most 200 rows."""
    format: str | None = None
    """Name of the row format, where it is not found from the keys."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field names of the rows that go by other names: {ours: theirs}."""
    roles: dict[str, str] = Field(default_factory=dict)
    """Role names of the rows that go by other names: {theirs: ours}."""
    template: str | None = None
    """Name of the chat template, where it is not found from the model."""
    learn: Literal["all", "last", "marked", "text"] = "all"
    """Learn every assistant turn, the last one, those that the rows mark themselves, or the whole text."""
    system: str | None = None
    """A system prompt that replaces those of the rows."""
    truncation: Literal["error", "drop", "truncate-left"] = "error"
    """What happens to a conversation longer than max_length."""

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class RunConfig(StrictModel):
    """Everything that decides what a run learns; written to RUN/config.yaml, complete."""

    model: str
    """Alias, directory or hub id."""
    data: DataConfig
    """What to learn from."""
    training_config: TrainingConfig = TrainingConfig()
    """How to train."""
    peft_config: LoraConfig = LoraConfig()
    """Where the adapters go."""

    @model_validator(mode="before")
    @classmethod
    def _data_by_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("data"), str | list):
            return {**values, "data": {"train": values["data"]}}
        return values


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, aliases or tags, that reads 2e-4 as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError("E-CFG-34", "aliases and anchors are forbidden", place=f"{self.name}:{line}")
        if getattr(event, "tag", None) not in (None, "!"):
            raise ConfigError("E-CFG-33", f"tags are forbidden, found {event.tag}", place=f"{self.name}:{line}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in lines:
                raise ConfigError(
                    "E-CFG-32", f'key "{key}" is repeated, first on line {lines[key]}', place=f"{self.name}:{line}"
                )
            lines[key] = line
        return super().construct_mapping(node, deep)


# YAML 1.1 takes no, off and yes for truth values; here only true and false are, and eval_strategy: no means "no".
_BOOL = "tag:yaml.org,2002:bool"
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
# YAML 1.1 wants a dot and a sign in an exponent; people write 2e-4 and mean the number.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping strictly: no duplicate keys, tags or aliases."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("E-CFG-100", "no such file", place=str(path), fix="Check --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("E-CFG-101", f"cannot be read: {error}", place=str(path)) from None
    return _parse_yaml(text, str(path), dict)


def _parse_yaml(text: str, name: str, kind: type) -> Any:
    loader = _StrictLoader(text)
    loader.name = name
    try:
        value = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError("E-CFG-102", f"not valid YAML: {getattr(error, 'problem', error)}", place=place) from None
    finally:
        loader.dispose()
    if not isinstance(value, kind):
        raise ConfigError("E-CFG-103", f"expected keys and values, found {type(value).__name__}", place=name)
    return value


def with_overrides(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply `section.key=value` assignments, whose values are read as YAML, to a copy of `values`."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        *sections, key = path.split(".")
        if not equals or not key or len(sections) != 1:
            raise ConfigError(
                "E-CFG-104", f'"{assignment}" is not section.key=value', place="--set",
                fix="Write for example --set training_config.learning_rate=1e-4",
            )  # fmt: skip
        section = result.setdefault(sections[0], {})
        if not isinstance(section, dict):
            raise ConfigError("E-CFG-104", f'"{sections[0]}" has no keys', place="--set")
        section[key] = _parse_yaml(text, f"--set {path}", object) if text else None
    return result


def pairs(flag: str, assignments: Sequence[str] | None) -> dict[str, str]:
    """Read `a=b` flags into a dictionary."""
    found = {}
    for assignment in assignments or []:
        left, equals, right = assignment.partition("=")
        if not (left and equals and right):
            raise ConfigError("E-CFG-105", f'"{assignment}" is not NAME=NAME', place=flag)
        found[left] = right
    return found


def resolve_config(
    *,
    file: Path | None = None,
    model: str | None = None,
    flags: Mapping[str, Mapping[str, Any]] | None = None,
    assignments: Sequence[str] = (),
) -> RunConfig:
    """Put a configuration together: the file, then MODEL and flags over it, then `--set` assignments over those."""
    values: dict[str, Any] = load_yaml(file) if file else {}
    if isinstance(values.get("data"), str | list):
        values["data"] = {"train": values["data"]}
    if model is not None:
        values["model"] = model
    for section, entries in (flags or {}).items():
        given = {key: value for key, value in entries.items() if value not in (None, {})}
        if given:
            values[section] = {**(values.get(section) or {}), **given}
    values = with_overrides(values, list(assignments))
    for key, name in (("model", "MODEL"), ("data", "DATA")):
        if key not in values:
            raise ConfigError(
                "E-CFG-106", f"no {name} given", fix="Write for example: lorakeet train phi3-mini chats.jsonl"
            )
    return RunConfig(**values)


def dump_yaml(config: RunConfig) -> str:
    """Write a configuration so that `load_yaml` reads back the same one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
