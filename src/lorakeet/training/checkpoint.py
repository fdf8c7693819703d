"""Checkpoints that a crash cannot spoil.

data in: the trainer's whole state and what identifies the run → out: RUN/checkpoints/step-000100/, and back.
A checkpoint is written into a hidden folder, each file forced to disk, the manifest (sizes and SHA-256 of the others)
last; then it is renamed into place, read back, and only then is the oldest one deleted. Reading takes the newest one
whose manifest holds, and names those it passed over. Everything is safetensors and JSON.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file

from lorakeet.errors import CheckpointError, ConfigError, DataError

FORMAT = 1
_TENSOR_FILES = ("params", "moments", "rng")


@dataclass(frozen=True)
class TrainerState:
    """Everything that decides how training goes on."""

    params: dict[str, torch.Tensor]
    """Trainable parameters by name, fp32."""
    moments: dict[str, torch.Tensor]
    """The optimizer's tensors, as `training.state` names them."""
    rng: dict[str, torch.Tensor]
    """States of torch's random generators."""
    counts: dict[str, int]
    """step, num_tokens, num_supervised_tokens."""
    optimizer: dict[str, Any]
    """What else the optimizer keeps: its parameter groups and plain values."""


@contextmanager
def lock(run_directory: Path) -> Iterator[None]:
    """Hold a run directory alone; another process is told who has it. A new one that stays empty goes again.

    Raises: ConfigError E-CFG-46 where nothing can be written there, E-CFG-50 where another process has it.
    """
    is_new = not run_directory.exists()
    holder, held = run_directory / ".lock.pid", FileLock(run_directory / ".lock", blocking=False)
    try:
        run_directory.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        pid = holder.read_text() if holder.exists() else "unknown"
        raise ConfigError(
            "E-CFG-50", f"locked by process {pid}", place=str(run_directory),
            fix="Wait for it, or choose another output directory",
        ) from None  # fmt: skip
    except OSError as error:
        raise ConfigError(
            "E-CFG-46", f"cannot be written: {error.strerror}", place=str(run_directory),
            fix="Choose another output directory, or mend its permission",
        ) from None  # fmt: skip
    try:
        holder.write_text(str(os.getpid()))
        yield
    finally:
        held.release()
        if is_new and all(path.name.startswith(".lock") for path in run_directory.iterdir()):
            shutil.rmtree(run_directory)


def save_checkpoint(run_directory: Path, state: TrainerState, identity: dict[str, str], keep: int) -> Path:
    """Write a checkpoint, prove that it reads back, then delete all but the newest `keep` (at least two)."""
    root = run_directory / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"step-{state.counts['step']:06}"
    temporary = root / f".tmp-{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name in _TENSOR_FILES:
        tensors = {key: value.detach().cpu().contiguous() for key, value in getattr(state, name).items()}
        save_file(tensors, temporary / f"{name}.safetensors")
    (temporary / "state.json").write_text(json.dumps({"counts": state.counts, "optimizer": state.optimizer}, indent=1))
    files = sorted(temporary.iterdir())
    for file in files:
        _sync(file)
    manifest = {
        "format": FORMAT,
        "torch": torch.__version__,
        "identity": identity,
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files},
    }
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
    _sync(temporary / "manifest.json")
    _sync(temporary)
    if target.exists():  # a damaged one of an earlier life; its name is needed
        shutil.rmtree(target)
    temporary.rename(target)
    _sync(root)
    check_manifest(target)
    for old in checkpoints(run_directory)[max(2, keep) :]:
        shutil.rmtree(old)
    return target


def checkpoints(run_directory: Path) -> list[Path]:
    """List a run's checkpoints, newest first, valid or not."""
    root = run_directory / "checkpoints"
    found = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d+", path.name)] if root.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def load_newest(
    run_directory: Path, identity: dict[str, str], note: Callable[[str], None]
) -> tuple[Path, TrainerState] | None:
    """Load the newest valid checkpoint, telling `note` of each one passed over; None where the run has none at all.

    Raises: CheckpointError where checkpoints exist but none is valid, or where it belongs to another `identity`;
    DataError where the data is not the one it was made with.
    """
    found = checkpoints(run_directory)
    for path in found:
        try:
            manifest = check_manifest(path)
        except CheckpointError as error:
            note(f"{error} Skipping it.")
            continue
        differing = sorted(key for key, value in identity.items() if manifest["identity"].get(key) != value)
        if "data" in differing:
            now, then = identity["data"][:12], str(manifest["identity"].get("data"))[:12]
            raise DataError(
                "E-DATA-30", f"the training data changed since: its hash is {now}, was {then}", place=str(path),
                fix="Resume with the data the run began with, or start a new run",
            )  # fmt: skip
        if differing:
            raise CheckpointError(
                "E-CKPT-62", f"was made with another {', '.join(differing)}", place=str(path),
                fix="Resume with what the run began with, or start a new run",
            )  # fmt: skip
        tensors = {name: load_file(path / f"{name}.safetensors") for name in _TENSOR_FILES}
        plain = json.loads((path / "state.json").read_text())
        return path, TrainerState(**tensors, counts=plain["counts"], optimizer=plain["optimizer"])
    if found:
        raise CheckpointError(
            "E-CKPT-54", f"none of its {len(found)} checkpoints is valid", place=str(run_directory),
            fix="Start again from step 0 with --restart, or choose another output directory",
        )  # fmt: skip
    return None


def check_manifest(path: Path) -> dict:
    """Return a checkpoint's manifest after comparing every file with it; raise CheckpointError naming what differs."""
    manifest_file = path / "manifest.json"
    try:
        manifest = json.loads(manifest_file.read_text())
        files, found_format = manifest["files"], manifest["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError("E-CKPT-53", "has no readable manifest.json", place=str(path)) from None
    if found_format != FORMAT:
        raise CheckpointError(
            "E-CKPT-61",
            f"has format {found_format}, this version reads {FORMAT}",
            place=str(path),
            fix="Upgrade lorakeet",
        )
    for name in ("state.json", *(f"{name}.safetensors" for name in _TENSOR_FILES)):
        file, entry = path / name, files.get(name)
        if entry is None or not file.is_file():
            raise CheckpointError("E-CKPT-60", "is missing: cannot resume exactly", place=str(file))
        size = file.stat().st_size
        if size != entry["bytes"]:
            code = "E-CKPT-55" if size == 0 else "E-CKPT-56"
            raise CheckpointError(code, f"has {size} of {entry['bytes']} bytes", place=str(file))
        if _sha256(file) != entry["sha256"]:
            raise CheckpointError("E-CKPT-57", "does not match its manifest (SHA-256)", place=str(file))
    return manifest


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Force a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
