"""How to train.

data in: keys of `training_config` → out: a frozen TrainingConfig.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lorakeet.config.foreign_keys import TRAINING_KEYS, TRAINING_RENAMED
from lorakeet.config.schedules import SCHEDULES, ScheduleName, ScheduleOptions
from lorakeet.config.strict import StrictModel
from lorakeet.errors import ConfigError


class TrainingConfig(StrictModel):
    """Say how to train, with the names of transformers.TrainingArguments and trl.SFTConfig."""

    section: ClassVar[str] = "training_config"
    codes: ClassVar = {
        "learning_rate": ("E-CFG-36", "LoRA usually learns at 1e-5 to 1e-3"),
        "per_device_train_batch_size": ("E-CFG-38", "Use for example 4"),
        "per_device_eval_batch_size": ("E-CFG-38", "Use for example 4"),
        "gradient_accumulation_steps": ("E-CFG-38", "Use 1 for none"),
        "seed": ("E-CFG-51", "Use for example 42"),
    }
    foreign_keys: ClassVar = TRAINING_KEYS
    renamed: ClassVar = TRAINING_RENAMED
    none_is_default: ClassVar[frozenset[str]] = frozenset({"eval_steps", "warmup_ratio"})

    output_dir: str | None = None
    """Where the run is written; a new folder under runs/ where none is named."""
    run_name: str | None = None
    """The run's own name; the new folder under runs/ then has it."""
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
    lr_scheduler_type: ScheduleName = "cosine"
    """How the learning rate falls after warm-up."""
    lr_scheduler_kwargs: dict[str, Any] | None = None
    """What else the schedule is told, for example {min_lr_rate: 0.1}."""
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
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1)
    """Part of each target that is spread evenly over the vocabulary while training; evaluation never smooths."""
    neftune_noise_alpha: float | None = Field(None, ge=0, allow_inf_nan=False)
    """NEFTune: noise on the embeddings while training, uniform within ±alpha / sqrt(tokens of the document × width)."""
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
    save_total_limit: int | None = Field(2, ge=1)
    """Checkpoints kept; all with null, never fewer than the two newest, so that one damaged file loses little."""
    gradient_checkpointing: bool | Literal["selective", "full"] | None = False
    """Keep less for the backward pass and compute it again there: true or "selective" what is cheap, "full" all."""
    bf16: bool | None = None
    """Compute in bfloat16 (True) or float32 (False); chosen for this machine where nothing is said."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Seed of adapters, order and dropout."""

    @property
    def recompute(self) -> Literal["selective", "full"] | None:
        """What the backward pass computes again: nothing, what is cheap, or all."""
        return "selective" if self.gradient_checkpointing is True else self.gradient_checkpointing or None

    @field_validator("run_name")
    @classmethod
    def _is_a_plain_name(cls, name: str | None) -> str | None:
        if name is not None and (not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or not name.strip(".")):
            raise ConfigError(
                "E-CFG-49", f"is {name[:80]!r}; allowed: [A-Za-z0-9._-]{{1,64}}, and not dots alone",
                place="training_config.run_name", fix="Say where to write with output_dir",
            )  # fmt: skip
        return name

    @classmethod
    def _read(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        kept, notes = super()._read(values)
        if values.get("do_eval") is False:
            # As in transformers, where a strategy that is set has the last word.
            kept.setdefault("eval_strategy", "no")
        warmup = kept.get("warmup_steps")
        if isinstance(warmup, float) and 0 < warmup < 1:
            # transformers 5 takes a part of all steps under this name too.
            kept["warmup_ratio"] = kept.pop("warmup_steps")
        return kept, notes

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> "TrainingConfig":
        if self.max_steps > 0 and "num_train_epochs" in self.model_fields_set:
            raise ConfigError(
                "E-CFG-39", f"num_train_epochs is {self.num_train_epochs:g} and max_steps is {self.max_steps}",
                place="training_config", fix="Choose one; max_steps: -1 counts epochs",
            )  # fmt: skip
        return self

    @property
    def schedule(self) -> ScheduleOptions:
        """The schedule's options, its own defaults among them."""
        return SCHEDULES[self.lr_scheduler_type](**(self.lr_scheduler_kwargs or {}))

    @model_validator(mode="after")
    def _schedule_ends_below_its_peak(self) -> "TrainingConfig":
        options = self.schedule
        for name in ("min_lr", "lr_end"):
            end = getattr(options, name, None)
            if end is not None and end >= self.learning_rate:
                raise ConfigError(
                    "E-CFG-144", f"{name} is {end:g}, learning_rate, from which it falls, is {self.learning_rate:g}",
                    place=options.section, fix=f"Set {name} below learning_rate",
                )  # fmt: skip
        return self

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
