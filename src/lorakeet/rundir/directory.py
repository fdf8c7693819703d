"""Where a run is written, and what of an earlier one may lie there: nothing of the user's is overwritten or deleted.

configuration, paths → out: a directory that a run may begin or go on in.
"""

import itertools
import logging
import re
import time
from pathlib import Path

from lorakeet.config import RunConfig
from lorakeet.errors import ConfigError
from lorakeet.files import durable

logger = logging.getLogger(__name__)


def choose_directory(config: RunConfig) -> Path:
    """Return the directory that the configuration names, or a new one, named after the moment and the model."""
    settings = config.training_config
    if settings.output_dir:
        return Path(settings.output_dir)
    if settings.run_name:
        return Path("runs") / settings.run_name
    stem = Path("runs") / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{Path(config.model).name}"
    names = itertools.chain([stem], (stem.with_name(f"{stem.name}-{i}") for i in itertools.count(2)))
    return next(name for name in names if not name.exists())


def check_directory(directory: Path, *, resume: bool, restart: bool) -> bool:
    """Return whether a run begins here, or raise ConfigError if something of the user's would be in its way."""
    if not directory.is_dir() or all(_is_ours(path) for path in directory.iterdir()):
        return True
    if not (directory / "config.yaml").is_file():
        raise ConfigError(
            "E-CFG-48", "is not empty and holds no run", place=str(directory), fix="Choose another output directory"
        )
    if not (resume or restart):
        raise ConfigError(
            "E-CFG-48",
            "holds a run already",
            place=str(directory),
            fix="Go on with --resume, begin again with --restart, or choose another output directory",
        )
    return False


def _is_ours(path: Path) -> bool:
    """Tell whether a name is one that a run leaves where it was ended before it began: locks, drafts, earlier runs."""
    return path.name.startswith(".lock") or durable.is_leftover(path) or re.fullmatch(r"old-\d+", path.name) is not None


# What a run writes, in the order in which it is moved aside: a crash in between leaves what --resume can go on from.
_RUN_FILES = (
    "metrics.jsonl",
    "samples.jsonl",
    "rows.jsonl",
    "data.json",
    "evaluation.json",
    "proofs.json",
    "prediction.json",
    "train.log",
    "logs",
    "report.html",
    "adapter",
    "config.yaml",
    "checkpoints",
)


def move_aside(directory: Path) -> None:
    """Move what an earlier run wrote into a folder of its own; nothing is deleted."""
    found = [directory / name for name in _RUN_FILES if (directory / name).exists()]
    if not found:
        return
    aside = next(path for i in itertools.count(1) if not (path := directory / f"old-{i}").exists())
    aside.mkdir()
    for path in found:
        path.rename(aside / path.name)
    durable.sync_directory(aside)
    durable.sync_directory(directory)
    logger.info("The earlier run's files are now in %s.", aside)
