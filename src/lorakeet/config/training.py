"""How to train.

data in: keys of `training_config` → out: a frozen TrainingConfig.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from lorakeet.config.foreign_keys import TRAINING_KEYS, TRAINING_RENAMED
from lorakeet.config.schedules import SCHEDULES, ScheduleName, ScheduleOptions
from lorakeet.config.strict import StrictModel
from lorakeet.errors import ConfigError

REPORTERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Services that metrics can be reported to."""
_OTHER_REPORTERS = (
    "azure_ml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "kubeflow",
    "neptune",
    "swanlab",
)


class TrainingConfig(StrictModel):
    """How to train, with the names of transformers.TrainingArguments and trl.SFTConfig."""

    section: ClassVar[str] = "training_config"
    codes: ClassVar = {
        "learning_rate": ("E-CFG-36", "LoRA usually trains at 1e-5 to 1e-3"),
        "per_device_train_batch_size": ("E-CFG-38", "Use for example 4"),
        "per_device_eval_batch_size": ("E-CFG-38", "Use for example 4"),
        "gradient_accumulation_steps": ("E-CFG-38", "Use 1 for none"),
        "seed": ("E-CFG-51", "Use for example 42"),
    }
    foreign_keys: ClassVar = TRAINING_KEYS
    renamed: ClassVar = TRAINING_RENAMED
    none_is_default: ClassVar[frozenset[str]] = frozenset({"eval_steps", "metric_for_best_model", "report_to", "warmup_ratio"})

    output_dir: str | None = None
    """Where the run is written; a new folder under runs/ if none is named."""
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
    """Further arguments of the schedule, for example {min_lr_rate: 0.1}."""
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Part of all steps over which the learning rate rises from zero."""
    warmup_steps: int = Field(0, ge=0)
    """The same as a number of steps; if it is not 0 it wins."""
    optim: Literal[
        "adamw_torch_fused",
        "adamw_torch",
        "adamw_8bit",
        "adamw_bnb_8bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "adafactor",
        "lion",
        "lion_32bit",
        "lion_8bit",
        "paged_lion_32bit",
        "paged_lion_8bit",
        "schedule_free_adamw",
    ] = "adamw_torch_fused"
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
    """LoRA+: lora_B's learning rate over lora_A's; the paper advises 16, at about half the usual rate."""
    loraplus_lr_embedding: float = Field(1e-6, gt=0, allow_inf_nan=False)
    """LoRA+: learning rate of adapters on embeddings."""
    max_grad_norm: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Largest norm of a step's gradient; 0 leaves it alone."""
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1)
    """Part of each target that is spread evenly over the vocabulary while training; evaluation never smooths."""
    neftune_noise_alpha: float | None = Field(None, ge=0, allow_inf_nan=False)
    """NEFTune: noise on the embeddings while training, uniform within ±alpha / sqrt(tokens of the document × width)."""
    max_length: int | None = Field(None, ge=8)
    """Longest conversation in tokens; the model's own limit if none is given."""
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
    """Compute in bfloat16 (True) or float32 (False); chosen for this machine if nothing is said."""
    load_best_model_at_end: bool = False
    """Keep the adapter of the best evaluation in place of the last step's."""
    metric_for_best_model: Literal["eval_loss", "loss"] = "eval_loss"
    """What makes an evaluation the best one."""
    greater_is_better: bool | None = None
    """Whether larger values of it are better; a loss is better when it is smaller."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations in a row that are not better."""
    early_stopping_threshold: float = Field(0.0, ge=0, allow_inf_nan=False)
    """What counts as better for early stopping: by more than this."""
    sample_prompts: NonNegativeInt | list[str] = 0
    """Prompts, or a number of held-out rows, that are answered at every evaluation."""
    sample_max_new_tokens: int = Field(128, ge=1)
    """Longest of these answers, in tokens."""
    report_to: str | list[str] = "none"
    """Where metrics go beside the console and metrics.jsonl: tensorboard, wandb, mlflow, trackio; "all" or "none"."""
    project: str = "lorakeet"
    """The project under which these services file the run, by its run_name or else its folder's name."""
    logging_dir: str | None = None
    """Where they write; RUN/logs if nothing is said."""
    fsdp: bool = False
    """With several processes, keep a part of the frozen model in each (FSDP2) instead of all of it in all."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Seed of adapters, order and dropout."""

    @property
    def recompute(self) -> Literal["selective", "full"] | None:
        """What the backward pass computes again: nothing, what is cheap, or all."""
        return "selective" if self.gradient_checkpointing is True else self.gradient_checkpointing or None

    @field_validator("fsdp", mode="before")
    @classmethod
    def _shards_fully(cls, value: Any) -> Any:
        """Read transformers' ways to ask for it: "full_shard auto_wrap", as a string or a list, or nothing at all."""
        words = value.split() if isinstance(value, str) else [] if value is None else value
        if isinstance(words, list) and set(words) <= {"full_shard", "auto_wrap"}:
            return "full_shard" in words
        if isinstance(words, list):
            raise ConfigError(
                "E-CFG-184",
                f"is {value!r}, which is not sharding the whole model",
                place="training_config.fsdp",
                fix="Set fsdp: true",
            )
        return value

    @field_validator("run_name")
    @classmethod
    def _is_a_plain_name(cls, name: str | None) -> str | None:
        if name is not None and (not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or not name.strip(".")):
            raise ConfigError(
                "E-CFG-49",
                f"is {name[:80]!r}; allowed: [A-Za-z0-9._-]{{1,64}}, and not dots alone",
                place="training_config.run_name",
                fix="Name a directory with output_dir",
            )
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
        named = kept.get("report_to")
        passed_over = [name for name in ([named] if isinstance(named, str) else named or []) if name in _OTHER_REPORTERS]
        if passed_over:
            kept["report_to"] = [name for name in named or [] if name not in passed_over and not isinstance(named, str)]
            notes.append(f"training_config.report_to passes over {', '.join(passed_over)}: metrics.jsonl has all of it")
        return kept, notes

    @field_validator("report_to")
    @classmethod
    def _services_are_known(cls, value: str | list[str]) -> str | list[str]:
        for name in [value] if isinstance(value, str) else value:
            if name not in (*REPORTERS, "all", "none"):
                near = difflib.get_close_matches(name, REPORTERS, n=1)
                raise ConfigError(
                    "E-CFG-150",
                    f'names "{name[:80]}"',
                    place="training_config.report_to",
                    fix=f"Did you mean {near[0]}?" if near else f"Known: {', '.join(REPORTERS)}, all, none",
                )
        return value

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> "TrainingConfig":
        if self.max_steps > 0 and "num_train_epochs" in self.model_fields_set:
            raise ConfigError(
                "E-CFG-39",
                f"num_train_epochs is {self.num_train_epochs:g} and max_steps is {self.max_steps}",
                place="training_config",
                fix="Choose one; max_steps: -1 counts epochs",
            )
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
                    "E-CFG-144",
                    f"{name} is {end:g}, learning_rate, from which it falls, is {self.learning_rate:g}",
                    place=options.section,
                    fix=f"Set {name} below learning_rate",
                )
        return self

    @model_validator(mode="after")
    def _schedule_free_has_no_schedule(self) -> "TrainingConfig":
        if self.optim == "schedule_free_adamw" and not self.lr_scheduler_type.startswith("constant"):
            raise ConfigError(
                "E-CFG-142",
                f"schedule_free_adamw averages instead of following {self.lr_scheduler_type}",
                place="training_config.lr_scheduler_type",
                fix="Set lr_scheduler_type to constant or constant_with_warmup",
            )
        return self

    @model_validator(mode="after")
    def _choices_need_evaluations(self) -> "TrainingConfig":
        asked = {
            "load_best_model_at_end": self.load_best_model_at_end,
            "early_stopping_patience": self.early_stopping_patience,
            "sample_prompts": self.sample_prompts,
        }
        for key, value in asked.items():
            if value and self.eval_strategy == "no":
                raise ConfigError(
                    "E-CFG-151",
                    'happens at evaluations, and eval_strategy is "no"',
                    place=f"training_config.{key}",
                    fix="Set eval_strategy to steps or epoch",
                )
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ConfigError(
                "E-CFG-152",
                "says what is better for early stopping, and early_stopping_patience is not set",
                place="training_config.early_stopping_threshold",
                fix="Set early_stopping_patience, for example 3",
            )
        return self

    @model_validator(mode="after")
    def _packing_needs_a_length(self) -> "TrainingConfig":
        if self.packing and self.max_length is None:
            raise ConfigError(
                "E-CFG-45",
                "packing fills rows of max_length tokens, and max_length is not set",
                place="training_config.packing",
                fix="Set max_length, for example 2048",
            )
        return self
