"""The arguments of each learning-rate schedule, with the names of transformers' schedules and their arguments.

data in: `lr_scheduler_type` and `lr_scheduler_kwargs` → out: frozen options with their defaults. The rates themselves
are made from them in training/schedule.py. Schedules that follow the loss (reduce_lr_on_plateau, greedy) are none of
these: a rate here is a function of the step, so that a resumed run has the same.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from lorakeet.config.strict import StrictModel
from lorakeet.errors import ConfigError

ScheduleName = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]


class ScheduleOptions(StrictModel):
    """The options of a schedule that has none."""

    section: ClassVar[str] = "training_config.lr_scheduler_kwargs"


class Cosine(ScheduleOptions):
    """Falls along a cosine."""

    num_cycles: float = Field(0.5, gt=0, allow_inf_nan=False)
    """Waves; a half one goes from the peak to zero."""


class CosineWithRestarts(ScheduleOptions):
    """Falls along a half cosine, several times."""

    num_cycles: int = Field(1, ge=1)
    """How often it falls."""


class CosineWithMinimum(Cosine):
    """Falls along a cosine to a minimum, which is one of these two."""

    min_lr: float | None = Field(None, ge=0, allow_inf_nan=False)
    """The minimum as a learning rate."""
    min_lr_rate: float | None = Field(None, ge=0, le=1)
    """The minimum as a part of the peak."""

    @model_validator(mode="after")
    def _has_one_minimum(self) -> "CosineWithMinimum":
        if (self.min_lr is None) == (self.min_lr_rate is None):
            found = "neither min_lr nor min_lr_rate" if self.min_lr is None else "both min_lr and min_lr_rate"
            raise ConfigError("E-CFG-143", f"has {found}", place=self.section, fix="Set one of them")
        return self


class CosineWithMinimumAndWarmup(CosineWithMinimum):
    """The same, and warm-up rises from a rate that can be set."""

    warmup_lr_rate: float | None = Field(None, ge=0, le=1)
    """The first rate as a part of the peak; one step's part of warm-up if none is named."""


class Polynomial(ScheduleOptions):
    """Falls as a power of what is left."""

    lr_end: float = Field(1e-7, ge=0, allow_inf_nan=False)
    """Last learning rate."""
    power: float = Field(1.0, gt=0, allow_inf_nan=False)
    """The power."""


class InverseSquareRoot(ScheduleOptions):
    """Falls as one over the root of the step."""

    timescale: int | None = Field(None, ge=1)
    """Steps over which it falls by √2; the warm-up steps, or 10,000, if none is named."""


class WarmupStableDecay(ScheduleOptions):
    """Rises, stays, falls."""

    num_decay_steps: int = Field(ge=0)
    """Steps over which it falls."""
    num_stable_steps: int | None = Field(None, ge=0)
    """Steps at the peak; all that are left if none is named. After the fall it stays at the minimum."""
    warmup_type: Literal["linear", "cosine", "1-sqrt"] = "linear"
    """How it rises."""
    decay_type: Literal["linear", "cosine", "1-sqrt"] = "cosine"
    """How it falls."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Where it begins and ends, as a part of the peak."""
    num_cycles: float = Field(0.5, gt=0, allow_inf_nan=False)
    """Waves of a cosine fall."""


SCHEDULES: dict[str, type[ScheduleOptions]] = {
    "linear": ScheduleOptions,
    "cosine": Cosine,
    "cosine_with_restarts": CosineWithRestarts,
    "polynomial": Polynomial,
    "constant": ScheduleOptions,
    "constant_with_warmup": ScheduleOptions,
    "inverse_sqrt": InverseSquareRoot,
    "cosine_with_min_lr": CosineWithMinimum,
    "cosine_warmup_with_min_lr": CosineWithMinimumAndWarmup,
    "warmup_stable_decay": WarmupStableDecay,
}
"""The options of every schedule, by its name."""
