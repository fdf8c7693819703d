"""A run directory as it is read: configuration, rows of metrics, what came of the run.

data in: a directory → out: what its files say. They are written by the loop and its checkpoints; nothing is written here
but config.yaml.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakeet.config import RunConfig, dump_yaml, load_yaml
from lorakeet.errors import AdapterError, CheckpointError, ConfigError
from lorakeet.files import durable
from lorakeet.formatting import command
from lorakeet.lora.adapter import adapter_extra
from lorakeet.rundir.checkpoint import checkpoints, step_of
from lorakeet.rundir.metrics_file import read_lines

logger = logging.getLogger(__name__)

CONFIG, EVALUATION, PROOFS = "config.yaml", "evaluation.json", "proofs.json"


@dataclass(frozen=True)
class RunRecord:
    """A finished or unfinished training run on disk."""

    directory: Path

    @property
    def config(self) -> RunConfig:
        """The run's whole configuration; output_dir is where the run lies now."""
        return with_settings(RunConfig(**load_yaml(self.directory / CONFIG)), output_dir=str(self.directory))

    @property
    def adapter_directory(self) -> Path:
        """Where the adapter lies, in PEFT's format."""
        return self.directory / "adapter"

    @property
    def is_finished(self) -> bool:
        """Whether training came to its end, so that there is an adapter to use."""
        return self.adapter_directory.is_dir()

    def require_finished(self) -> None:
        """Raise AdapterError E-ADPT-105 if the run was stopped before it had an adapter."""
        if not self.is_finished:
            steps = [step_of(path) for path in checkpoints(self.directory)]
            raise AdapterError(
                "E-ADPT-105",
                f"stopped {f'after step {max(steps)}' if steps else 'before its first checkpoint'} and has no adapter yet",
                place=str(self.directory),
                fix=f"Finish it: {command('train', '--resume', '-o', self.directory)}",
            )

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return list(read_lines(self.directory / "metrics.jsonl"))

    @property
    def summary(self) -> dict[str, Any]:
        """What came of the run, in a few numbers."""
        rows = self.metrics
        last = [row for row in rows if "loss" in row][-1]
        held_out = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
        extra = adapter_extra(self.adapter_directory) if self.adapter_directory.is_dir() else {}
        kept = extra.get("step", last["step"])
        return {
            "run_dir": str(self.directory),
            "adapter": str(self.adapter_directory),
            "steps": last["step"],
            "loss": last["loss"],
            "adapter_step": kept,
            "eval_loss_before": held_out.get(0),
            "eval_loss_after": held_out.get(kept),
            "train_seconds": last["elapsed_s"],
            "tokens_per_second": round(last["num_tokens"] / last["elapsed_s"], 1),
            "peak_memory_bytes": last["peak_memory_bytes"],
        }


def find_run(path: str | Path | None = None, *, finished: bool = False) -> Path:
    """Return the directory of a run; the newest one under runs/ if none is named, the newest finished one if `finished`.

    Raises: CheckpointError E-CKPT-100 if `path` is no run directory, 101 if there is no run.
    """
    if path is not None:
        if not (Path(path) / CONFIG).is_file():
            raise CheckpointError("E-CKPT-100", "is no run directory: it has no config.yaml", place=str(path))
        return Path(path)
    found = sorted(Path("runs").glob(f"*/{CONFIG}"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise CheckpointError("E-CKPT-101", "no run under runs/", fix="Train first: lorakeet train MODEL DATA")
    directories = [file.parent for file in found]
    done = [directory for directory in directories if RunRecord(directory).is_finished] if finished else []
    return (done or directories)[-1]


def write_config(directory: Path, config: RunConfig, system: str | None) -> None:
    """Write the whole configuration, with the `system` prompt that the rows share: a chat with the run needs it too.

    It does not say where it lies: repeated, it is a new run, in a new directory.
    """
    if config.data.system is None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"system": system})})
    durable.write_file(directory / CONFIG, dump_yaml(with_settings(config, output_dir=None)).encode())


def keep_found(directory: Path, name: str, content: dict[str, Any]) -> None:
    """Write the newest evaluation or proofs into the run for its report; a run may be one that can only be read."""
    try:
        with durable.writing(directory):
            durable.write_file(directory / name, (json.dumps(content, indent=1) + "\n").encode())
    except ConfigError as error:
        logger.warning("%s is not written: %s", name, error)


def with_settings(config: RunConfig, **changes: Any) -> RunConfig:
    """Return the configuration with other values in training_config."""
    return config.model_copy(update={"training_config": config.training_config.model_copy(update=changes)})
