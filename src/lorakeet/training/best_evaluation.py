"""Which evaluation was the best so far, and whether it is worth waiting for a better one.

data in: the row of each evaluation after a step → out: the best value and its step, and a wish to stop. What is kept
here is part of every checkpoint, so that a resumed run chooses and stops as the uninterrupted one does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lorakeet.config import TrainingConfig
from lorakeet.data.prepare import PreparedData
from lorakeet.errors import ConfigError
from lorakeet.rundir.rows import EvaluationRow


@dataclass
class BestEvaluation:
    """Compares evaluations as transformers' Trainer and its EarlyStoppingCallback do.

    The best one is the best by any margin; patience is used up by those that are not better than it by more than
    `threshold`.
    """

    metric: str
    greater_is_better: bool
    patience: int | None
    """Evaluations in a row that may pass without becoming better; None for any number."""
    threshold: float
    value: float | None = None
    """The best value; None before the first evaluation."""
    step: int = 0
    """Its step."""
    num_misses: int = 0
    """Evaluations since the last one that was better by more than the threshold."""

    @classmethod
    def for_config(cls, config: TrainingConfig) -> "BestEvaluation":
        """Begin as the configuration says."""
        metric = f"eval_{config.metric_for_best_model.removeprefix('eval_')}"
        greater = config.greater_is_better
        is_loss = metric.endswith("loss")
        return cls(
            metric, not is_loss if greater is None else greater, config.early_stopping_patience, config.early_stopping_threshold
        )

    def add(self, row: EvaluationRow) -> bool:
        """Compare an evaluation with the best one and return whether it is the best so far."""
        value, before = getattr(row, self.metric), self.value
        is_better = before is None or (value > before if self.greater_is_better else value < before)
        is_enough = before is None or (is_better and abs(value - before) > self.threshold)
        self.num_misses = 0 if is_enough else self.num_misses + 1
        if is_better:
            self.value, self.step = value, row.step
        return is_better

    @property
    def is_patience_over(self) -> bool:
        """Whether training should stop."""
        return self.patience is not None and self.num_misses >= self.patience

    def __str__(self) -> str:
        return f"{self.metric} {self.value} at step {self.step}, {self.num_misses} evaluations since were no better"

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        known = {} if self.value is None else {"best_value": self.value}
        return {"best_step": self.step, "num_misses": self.num_misses, **known}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on where `state` was taken."""
        self.value, self.step = state.get("best_value"), int(state["best_step"])
        self.num_misses = int(state["num_misses"])


def require_evaluations(config: TrainingConfig, data: PreparedData) -> None:
    """Raise ConfigError if something hangs on held-out rows and there are none."""
    asked = {
        "load_best_model_at_end": config.load_best_model_at_end,
        "early_stopping_patience": config.early_stopping_patience is not None,
        "sample_prompts": isinstance(config.sample_prompts, int) and config.sample_prompts > 0,
    }
    for key, is_asked in asked.items():
        if is_asked and not data.held_out:
            raise ConfigError(
                "E-CFG-153",
                "needs held-out rows, and none are held out",
                place=f"training_config.{key}",
                fix="Name evaluation data with --eval-data, or raise data.eval_fraction",
            )
