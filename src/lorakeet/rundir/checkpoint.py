"""Checkpoints that survive a crash.

data in: the trainer's whole state and what identifies the run → out: RUN/checkpoints/step-000100/, and back.
A checkpoint is written into a hidden folder, each file forced to disk, the manifest (sizes and SHA-256 of the others)
last; then it is compared with what is in memory, renamed into place, read back, and only then are older ones deleted.
Reading takes the newest one whose manifest holds, and names those it passed over. Everything is safetensors and JSON.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lorakeet.errors import CheckpointError, ConfigError, DataError, TrainingError
from lorakeet.files import durable
from lorakeet.files.hashing import file_sha256
from lorakeet.files.safetensors_file import read_tensors, write_tensors
from lorakeet.rundir.identity import BASE_MODEL, DATA, DECIDED_KEYS, HELD_OUT, default_of
from lorakeet.rundir.versions import versions

FORMAT = 1
MANIFEST, VALUES = "manifest.json", "state.json"
_TENSOR_FILES = ("params", "moments", "rng")
_FILES = (VALUES, *(f"{name}.safetensors" for name in _TENSOR_FILES))
_DATA_KEYS = (DATA, HELD_OUT)
_FEWEST = 2  # checkpoints kept: one alone could be damaged
_SHOWN = 12  # characters of a hash


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How far a run is, and the sums that its next row of metrics needs."""

    step: int
    num_tokens: int
    num_supervised_tokens: int
    elapsed_s: float
    is_evaluated: bool
    """Whether this step's evaluation is done."""
    window: tuple[float, int, int, float]
    """Loss, supervised tokens, tokens and seconds since the last logged row."""
    cursor: dict[str, Any]
    """Where in the data the next step is, and a mark of the order that it follows."""
    best: dict[str, float]
    """The best evaluation so far."""
    num_processes: int


@dataclass(frozen=True)
class TrainerState:
    """Everything that decides how training goes on."""

    params: dict[str, torch.Tensor]
    """Trainable parameters by name, fp32."""
    moments: dict[str, torch.Tensor]
    """The optimizer's tensors, as `training.state` names them."""
    rng: dict[str, torch.Tensor]
    """States of all random generators."""
    counts: Counts
    optimizer: dict[str, Any]
    """What else the optimizer keeps: its parameter groups and plain values."""

    @property
    def num_bytes(self) -> int:
        """Return the size of all tensors."""
        groups = (getattr(self, name) for name in _TENSOR_FILES)
        return sum(tensor.numel() * tensor.element_size() for group in groups for tensor in group.values())


@contextmanager
def lock(run_directory: Path) -> Iterator[None]:
    """Hold a run directory alone; another process gets an error that names the holder.

    A new directory that stays empty is removed again.
    What killed writers left unfinished in it is deleted, since nobody can be writing any more.
    """
    holder = run_directory / ".lock.pid"
    held = FileLock(run_directory / ".lock", blocking=False)
    with durable.writing(run_directory):
        made = [path for path in (run_directory, *run_directory.parents) if not path.exists()]
        durable.make_directory(run_directory)
        try:
            held.acquire()
        except Timeout:
            pid = holder.read_text() if holder.exists() else "unknown"
            raise ConfigError(
                "E-CFG-50",
                f"locked by process {pid}",
                place=str(run_directory),
                fix="Wait for it, or choose another output directory",
            ) from None
        holder.write_text(str(os.getpid()))
        for directory in (run_directory, run_directory / "checkpoints"):
            if directory.is_dir():
                durable.remove_leftovers(directory)
    try:
        yield
    finally:
        held.release()
        if run_directory in made and all(path.name.startswith(".lock") for path in run_directory.iterdir()):
            shutil.rmtree(run_directory)
            with suppress(OSError):  # something else lies there by now
                for parent in made[1:]:
                    parent.rmdir()


def save_checkpoint(
    run_directory: Path, state: TrainerState, identity: Mapping[str, str], keep: int | None, *, best_step: int | None = None
) -> Path:
    """Write a checkpoint and prove that it reads back; then delete older ones.

    The newest `keep` stay (None: all; never fewer than two), and so does the one of `best_step`.

    Raises: ConfigError E-CFG-46 or 47 if it cannot be written, CheckpointError E-CKPT-110 if it reads back
    otherwise, TrainingError E-TRAIN-15 if a value is not finite. The checkpoints before it are then untouched.
    """
    _require_finite(state)
    root = run_directory / "checkpoints"
    step = state.counts.step
    target = checkpoint_path(run_directory, step)
    with durable.writing(target):
        durable.make_directory(root)
        durable.require_space(root, state.num_bytes)
        with durable.new_directory(target, replace=True) as draft:  # a damaged one may have the name
            _write(draft, state, identity)
            _compare(draft, state)
        check_manifest(target)
        # Any beyond this step are damaged: resuming had passed over them.
        obsolete = [path for path in checkpoints(run_directory) if step_of(path) > step]
        older = [path for path in checkpoints(run_directory) if step_of(path) < step]
        older = older[max(_FEWEST, keep) - 1 :] if keep is not None else []
        for path in obsolete + older:
            if step_of(path) != best_step:
                durable.remove_directory(path)
    return target


def _write(draft: Path, state: TrainerState, identity: Mapping[str, str]) -> None:
    """Write a checkpoint's files into `draft`, the manifest last."""
    for name in _TENSOR_FILES:
        write_tensors(draft / f"{name}.safetensors", getattr(state, name))
    durable.write_file(draft / VALUES, _values_text(state).encode())
    files = [draft / name for name in _FILES]
    manifest = {
        "format": FORMAT,
        "step": state.counts.step,
        "versions": versions(),
        "identity": dict(identity),
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files},
    }
    durable.write_file(draft / MANIFEST, _manifest_text(manifest).encode())


def _manifest_text(manifest: dict[str, Any]) -> str:
    """Render a manifest with its own hash at the end, so that damage to itself is found too."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=1)


def _compare(draft: Path, state: TrainerState) -> None:
    """Read a draft back and compare it with the state it was made from."""
    read = _read(draft)
    for name in _TENSOR_FILES:
        found, expected = getattr(read, name), getattr(state, name)
        if found.keys() != expected.keys() or not all(torch.equal(found[key], expected[key].cpu()) for key in found):
            raise _reads_otherwise(draft / f"{name}.safetensors")
    if _values_text(read) != _values_text(state):
        raise _reads_otherwise(draft / VALUES)


def _values_text(state: TrainerState) -> str:
    return json.dumps({"counts": asdict(state.counts), "optimizer": state.optimizer}, indent=1)


def _reads_otherwise(file: Path) -> CheckpointError:
    return CheckpointError(
        "E-CKPT-110",
        "does not read back as it was written",
        place=str(file),
        fix="Check the disk; the checkpoints before it are untouched",
    )


def _require_finite(state: TrainerState) -> None:
    for group in (state.params, state.moments):
        for name, tensor in group.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise TrainingError(
                    "E-TRAIN-15",
                    f"{name} holds NaN or infinity, and is not saved",
                    place=f"step {state.counts.step}",
                    fix="Lower learning_rate and resume from the last checkpoint",
                )


def checkpoint_path(run_directory: Path, step: int) -> Path:
    """Return the place of a step's checkpoint."""
    return run_directory / "checkpoints" / f"step-{step:06}"


def checkpoints(run_directory: Path) -> list[Path]:
    """List a run's checkpoints, newest first, valid or not."""
    root = run_directory / "checkpoints"
    found = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d+", path.name)] if root.is_dir() else []
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the step that a checkpoint's directory is named after."""
    return int(path.name.removeprefix("step-"))


def load_newest(
    run_directory: Path, identity: Mapping[str, str], note: Callable[[str], None]
) -> tuple[Path, TrainerState] | None:
    """Load the newest valid checkpoint, calling `note` for each one passed over; None if the run has none at all.

    Raises: CheckpointError if checkpoints exist but none is valid, or if it belongs to another `identity`;
    DataError if the data is not the one it was made with.
    """
    found = checkpoints(run_directory)
    for path in found:
        try:
            manifest = check_manifest(path)
            state = _read(path)
        except CheckpointError as error:
            if error.code == "E-CKPT-61":  # not damaged, and older ones would lose what it holds
                raise
            note(f"{error} Skipping it.")
            continue
        _require_identity(path, manifest["identity"], identity)
        _note_versions(path, manifest["versions"], note)
        return path, state
    if found:
        raise CheckpointError(
            "E-CKPT-54",
            f"none of its {len(found)} checkpoints is valid",
            place=str(run_directory),
            fix="Start again from step 0 with --restart, or choose another output directory",
        )
    return None


def load_checkpoint(path: Path) -> TrainerState:
    """Load this very checkpoint; raise CheckpointError if it is damaged."""
    check_manifest(path)
    return _read(path)


def recorded_identity(run_directory: Path) -> dict[str, str]:
    """Return the identity that the newest readable checkpoint has; {} if there is none."""
    for path in checkpoints(run_directory):
        with suppress(CheckpointError):
            return _manifest(path)["identity"]
    return {}


def num_to_come(run_directory: Path) -> int:
    """Count the checkpoints that a run must have room for: two kept, and one in writing."""
    return max(1, _FEWEST + 1 - len(checkpoints(run_directory)))


def _require_identity(path: Path, then: Mapping[str, str | None], now: Mapping[str, str | None]) -> None:
    """Refuse a checkpoint of another run than this one, naming what differs."""
    then, now = ({key: side.get(key, default_of(key)) for key in now.keys() | then.keys()} for side in (then, now))
    was_undecided = {key for key in DECIDED_KEYS if then.get(key) == "null"}
    differing = sorted(key for key in now if now[key] != then[key] and key not in was_undecided)
    fix = "with what the run began with, or start a new run"
    for key in set(differing).intersection(_DATA_KEYS):
        hashes = f"its hash is {str(now.get(key))[:_SHOWN]}, was {str(then.get(key))[:_SHOWN]}"
        kind = "training data" if key == "data" else key
        raise DataError("E-DATA-30", f"the {kind} changed since: {hashes}", place=str(path), fix=f"Resume {fix}")
    if BASE_MODEL in differing:
        raise CheckpointError(
            "E-CKPT-64",
            f"belongs to the base model {then.get(BASE_MODEL)}, not to {now.get(BASE_MODEL)}",
            place=str(path),
            fix=f"Resume {fix}",
        )
    if differing:
        fields = ", ".join(f"{key} ({now.get(key)}, was {then.get(key)})" for key in differing)
        raise CheckpointError("E-CKPT-62", f"was made with another {fields}", place=str(path), fix=f"Resume {fix}")


def _note_versions(path: Path, then: dict[str, str], note: Callable[[str], None]) -> None:
    """Warn of what else differs; training goes on correctly, though perhaps not to the same last bit."""
    now = versions()
    changed = [f"{key} {value} is now {now[key]}" for key, value in then.items() if now.get(key, value) != value]
    if changed:
        note(f"{path}: {', '.join(changed)}. The run goes on, but may end with other last bits.")


def check_manifest(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest after comparing every file with it; raise CheckpointError naming what differs."""
    manifest = _manifest(path)
    for name in _FILES:
        file, entry = path / name, manifest["files"].get(name)
        if entry is None or not file.is_file():
            raise CheckpointError("E-CKPT-60", "is missing: cannot resume exactly", place=str(file))
        size = file.stat().st_size
        if size != entry["bytes"]:
            code = "E-CKPT-55" if size == 0 else "E-CKPT-56"
            raise CheckpointError(code, f"has {size} of {entry['bytes']} bytes", place=str(file))
        try:
            found = file_sha256(file)
        except OSError as error:
            raise CheckpointError("E-CKPT-53", f"cannot be read: {error.strerror or error}", place=str(file)) from None
        if found != entry["sha256"]:
            raise CheckpointError("E-CKPT-57", "does not match its manifest (SHA-256)", place=str(file))
    if manifest["step"] != step_of(path):
        raise CheckpointError("E-CKPT-57", f"is of step {manifest['step']}: it was renamed", place=str(path))
    return manifest


def _manifest(path: Path) -> dict[str, Any]:
    """Read a manifest that is as it was written."""
    file = path / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
        manifest = json.loads(text)
        digest, found_format = manifest.pop("sha256", None), manifest["format"]
    except FileNotFoundError:
        raise CheckpointError("E-CKPT-53", "has no manifest.json: it was never finished", place=str(path)) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError("E-CKPT-53", "is not readable", place=str(file)) from None
    if digest is None or text != _manifest_text(manifest):
        raise CheckpointError("E-CKPT-57", "does not match its own SHA-256", place=str(file))
    if found_format != FORMAT:
        raise CheckpointError(
            "E-CKPT-61", f"has format {found_format}, this version reads {FORMAT}", place=str(path), fix="Upgrade lorakeet"
        )
    return manifest


def _read(path: Path) -> TrainerState:
    """Read the state that a checkpoint holds."""
    tensors = {name: read_tensors(path / f"{name}.safetensors", CheckpointError)[0] for name in _TENSOR_FILES}
    values = json.loads((path / VALUES).read_text(encoding="utf-8"))
    return TrainerState(**tensors, counts=Counts(**values["counts"]), optimizer=values["optimizer"])
