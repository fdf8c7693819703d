"""The rows of numbers and answers that a run produces, one small class for each kind.

data in: numbers of the training loop → out: rows, which turn into JSON objects and back. `metrics.jsonl` holds StepRow
and EvaluationRow, `samples.jsonl` holds SampleRow. Nothing is written here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One optimizer step; `loss` and `tokens_per_second` cover all steps since the last logged row."""

    step: int
    epoch: float
    loss: float
    """Mean over supervised tokens, in nats."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    num_tokens: int
    """Since the start of the run, as are the supervised ones."""
    num_supervised_tokens: int
    tokens_per_second: float
    elapsed_s: float
    peak_memory_bytes: int
    seconds_left: float

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """The loss of the held-out rows after a step."""

    step: int
    epoch: float
    eval_loss: float
    num_supervised_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One answer of the model after a step."""

    step: int
    place: str
    prompt: str
    reference: str | None = None
    """The expected answer, if the question is a held-out row."""
    text: str
    stop_reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a JSON object; without a reference there is no such key."""
        return {key: value for key, value in asdict(self).items() if key != "reference" or value is not None}


Row = StepRow | EvaluationRow | SampleRow


def metrics_row(values: Mapping[str, Any]) -> StepRow | EvaluationRow:
    """Build a row from an object of metrics.jsonl; keys that a later version may add are left out."""
    kind: type[StepRow] | type[EvaluationRow] = EvaluationRow if "eval_loss" in values else StepRow
    return kind(**{field.name: values[field.name] for field in fields(kind)})
