"""Everything that decides the trained weights of a run: model, data, training_config, peft_config.

data in: the sections of a configuration → out: a frozen RunConfig.
"""

from datetime import date
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lorakeet.config.lora import LoraConfig
from lorakeet.config.quantization import QuantizationConfig
from lorakeet.config.strict import StrictModel
from lorakeet.config.training import TrainingConfig
from lorakeet.errors import ConfigError


class DataConfig(StrictModel):
    """The data to train on, and how its rows are read."""

    section: ClassVar[str] = "data"

    train: list[str] = Field(min_length=1)
    """Files, directories, hub ids, or "demo"."""
    eval: list[str] | None = None
    """Held-out data; if none is named, eval_fraction of the training rows is held out."""
    eval_fraction: float = Field(0.05, ge=0, lt=1)
    """Part of the rows that is held out, at most 200 rows."""
    format: str | None = None
    """Name of the row format, if it is not found from the keys."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field names of the rows that go by other names: {ours: theirs}."""
    roles: dict[str, str] = Field(default_factory=dict)
    """Role names of the rows that go by other names: {theirs: ours}."""
    merge_turns: bool = False
    """Join turns of one role that follow each other, with a blank line between them."""
    reasoning: Literal["keep", "drop"] | None = None
    """Keep reasoning that stands in a field of its own, as <think> text before the answer, or drop it."""
    template: str | None = None
    """Name of the chat template, if it is not found from the model."""
    date: str | None = None
    """The day (YYYY-MM-DD) that is written into the rows by chat templates that write one; none is the day the run begins."""
    learn: Literal["all", "last", "marked", "text"] = "all"
    """Which turns are trained on: all of the assistant's, the last one, those that the rows mark, or the whole text."""
    system: str | None = None
    """A system prompt that replaces those of the rows."""
    truncation: Literal["error", "drop", "truncate-left"] = "error"
    """What happens to a conversation longer than max_length."""

    @field_validator("date", mode="before")
    @classmethod
    def _is_day(cls, value: Any) -> Any:
        if isinstance(value, date):  # as YAML reads it
            return value.isoformat()
        try:
            return value if value is None else date.fromisoformat(value).isoformat()
        except (TypeError, ValueError):
            raise ConfigError("E-CFG-107", f"is {value!r}", place="data.date", fix="Write a day as YYYY-MM-DD") from None

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class RunConfig(StrictModel):
    """Everything that decides the trained weights of a run; written to RUN/config.yaml, complete."""

    model: str
    """Alias, directory or hub id."""
    data: DataConfig
    """The data to train on."""
    training_config: TrainingConfig = TrainingConfig()
    """How to train."""
    peft_config: LoraConfig = LoraConfig()
    """Where the adapters go."""
    quantization_config: QuantizationConfig = QuantizationConfig()
    """In how many bits the frozen base is held."""
    adapter: str | None = None
    """A run or an adapter directory to start from; what shapes an adapter is then taken from there."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Say, a line each, which keys were accepted without an effect, and what stands in their place."""
        return (*self.training_config.notes, *self.peft_config.notes)

    @model_validator(mode="after")
    def _one_compute_dtype(self) -> "RunConfig":
        wanted, bf16 = self.quantization_config.bnb_4bit_compute_dtype, self.training_config.bf16
        if wanted is not None and bf16 is not None and bf16 != (wanted == "bfloat16"):
            raise ConfigError(
                "E-CFG-171",
                f"is {wanted}, and training_config.bf16 is {bf16}",
                place="quantization_config.bnb_4bit_compute_dtype",
                fix="Leave one of them out",
            )
        return self

    @property
    def bf16(self) -> bool | None:
        """Whether the model computes in bfloat16; None if the machine decides."""
        wanted = self.quantization_config.bnb_4bit_compute_dtype
        return self.training_config.bf16 if wanted is None else wanted == "bfloat16"

    @model_validator(mode="before")
    @classmethod
    def _data_by_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("data"), str | list):
            return {**values, "data": {"train": values["data"]}}
        return values
