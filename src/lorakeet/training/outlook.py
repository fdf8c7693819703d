"""What a run was predicted to take beside what it took, said at its start and end and kept in RUN/prediction.json.

data in: a run directory and its Trainer → out: two lines for the person who waits, one JSON file.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakeet import dist
from lorakeet.files import durable
from lorakeet.machine.peak_memory import peak_memory_bytes
from lorakeet.training.loop import Trainer
from lorakeet.training.prediction import Prediction, predict

LEAST_STEPS = 50
"""A shorter run gets no prediction: the calibration would take a tenth of it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outlook:
    """A run's prediction, and where it began."""

    directory: Path
    trainer: Trainer
    first_step: int
    predicted: Prediction | None

    @classmethod
    def of(cls, directory: Path, trainer: Trainer) -> "Outlook":
        """Predict a run that is long enough and say so; a resumed run keeps the prediction it began with."""
        file = directory / "prediction.json"
        predicted = None
        if dist.is_shared():  # a prediction is made of passes that one process makes alone
            return cls(directory, trainer, trainer.step, None)
        if trainer.step == 0 and trainer.total_steps >= LEAST_STEPS:
            predicted = predict(trainer)
            _write(file, {"predicted": predicted.to_dict()})
            logger.info("Predicted: %s.", _said(predicted.training_seconds, predicted.peak_memory_bytes))
        elif trainer.step > 0 and file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))["predicted"]
            predicted = Prediction(**{name: kept[name] for name in Prediction.__dataclass_fields__})
        return cls(directory, trainer, trainer.step, predicted)

    def compare(self) -> None:
        """Say and keep what the steps of this process took, as an epoch of them."""
        steps = self.trainer.step - self.first_step
        if self.predicted is None or steps == 0:
            return
        seconds = self.trainer.train_seconds / steps * self.trainer.steps_per_epoch
        measured = {"training_seconds": seconds, "peak_memory_bytes": peak_memory_bytes()}
        _write(self.directory / "prediction.json", {"predicted": self.predicted.to_dict(), "measured": measured})
        logger.info(
            "Predicted: %s. Measured: %s.",
            _said(self.predicted.training_seconds, self.predicted.peak_memory_bytes),
            _said(seconds, peak_memory_bytes()),
        )


def _write(file: Path, content: dict[str, Any]) -> None:
    with durable.writing(file.parent):
        durable.write_file(file, (json.dumps(content, indent=2) + "\n").encode())


def _said(seconds: float, memory: int) -> str:
    return f"{seconds:,.0f} s of training an epoch, {memory / 1e9:.2f} GB at the peak"
