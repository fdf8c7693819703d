"""What a run directory says about its run, however the run ended.

data in: a run directory → out: ReportedRun. Files that are missing are left out; lines that a crash cut or spoiled are
passed over. Nothing of the model is loaded.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakeet.config import load_yaml
from lorakeet.errors import CheckpointError, LorakeetError
from lorakeet.rundir import checkpoint
from lorakeet.rundir.metrics_file import read_lines
from lorakeet.rundir.record import EVALUATION, PROOFS

Row = dict[str, Any]

_NEEDED = {"metrics.jsonl": ("step",), "samples.jsonl": ("step", "prompt", "text"), "rows.jsonl": ("epoch", "place", "loss")}


@dataclass(frozen=True)
class ReportedRun:
    """All that a report shows of one run."""

    name: str
    directory: Path
    config: dict[str, Any]
    steps: list[Row]
    """Logged steps, in order."""
    evaluations: list[Row]
    samples: list[Row]
    row_losses: list[Row]
    """One for each training row and epoch: epoch, place, loss, tokens."""
    prediction: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    """Statistics of the rows, what was proven of them, rows with their masks, the command, versions: RUN/data.json."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """What `lorakeet evaluate` measured last, with base and tuned answers."""
    verification: dict[str, Any] = field(default_factory=dict)
    """What `lorakeet verify` proved last: RUN/proofs.json."""
    identity: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    adapter_step: int | None = None
    """The step of the adapter; None if the run has none yet."""

    @property
    def last(self) -> Row:
        """The last logged step, or {}."""
        return self.steps[-1] if self.steps else {}


def read_run(directory: Path) -> ReportedRun:
    """Read a run directory.

    Raises: CheckpointError E-CKPT-100 if it is none, ConfigError if its config.yaml cannot be read.
    """
    if not (directory / "config.yaml").is_file():
        raise CheckpointError("E-CKPT-100", "is no run directory: it has no config.yaml", place=str(directory))
    rows = _rows(directory / "metrics.jsonl")
    newest = _newest_manifest(directory)
    return ReportedRun(
        name=directory.resolve().name,
        directory=directory,
        config=load_yaml(directory / "config.yaml"),
        steps=[row for row in rows if _is_number(row.get("loss"))],
        evaluations=[row for row in rows if _is_number(row.get("eval_loss"))],
        samples=_rows(directory / "samples.jsonl"),
        row_losses=[row for row in _rows(directory / "rows.jsonl") if _is_number(row["loss"])],
        prediction=_object(directory / "prediction.json"),
        data=_object(directory / "data.json"),
        evaluation=_object(directory / EVALUATION),
        verification=_object(directory / PROOFS),
        identity=newest.get("identity", {}),
        versions=newest.get("versions", {}),
        adapter_step=_adapter_step(directory / "adapter"),
    )


def _rows(path: Path) -> list[Row]:
    needed = _NEEDED.get(path.name, ())
    return [row for row in read_lines(path) if all(key in row for key in needed)]


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _newest_manifest(directory: Path) -> dict[str, Any]:
    for path in checkpoint.checkpoints(directory):
        if manifest := _object(path / checkpoint.MANIFEST):
            return manifest
    return {}


def _adapter_step(adapter: Path) -> int | None:
    """Read the step from where `save_adapter` keeps it, without loading the adapter."""
    from lorakeet.lora.adapter import adapter_extra

    try:
        step = adapter_extra(adapter).get("step") if adapter.is_dir() else None
    except LorakeetError:
        return None
    return step if isinstance(step, int) else None
