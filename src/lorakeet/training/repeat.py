"""A recorded training run, ready to be repeated: its configuration, pointed at where data and base model lie now.

data in: what an adapter says of its training, paths that the user names → out: a RunConfig that trains it again, and one that
does the same with other roundings. Data and base model are found by their hashes, never by their names alone. Trains nothing.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from lorakeet import dist
from lorakeet.config import RunConfig
from lorakeet.data.read import find_files
from lorakeet.errors import ConfigError, DataError, LorakeetError, ModelError
from lorakeet.files.cache import remembered_sha256
from lorakeet.models import registry, weights
from lorakeet.rundir.provenance import BaseModel, DataFile, Provenance, defining_files
from lorakeet.rundir.record import with_settings

_SHOWN = 12  # characters of a hash
_WEIGHT = re.compile(r"@\d+(\.\d+)?$")


def repeated_config(recorded: Provenance, *, data: Sequence[str] = (), model: str | None = None) -> RunConfig:
    """Return the configuration that trains a recorded adapter again; `data` and `model` are looked at after the recorded paths.

    It reports to no service, and answers no prompts while training: neither changes what is trained.

    Raises: DataError E-DATA-197 for a data file, ModelError E-MODEL-122 for a base model that is gone or has changed,
        ConfigError E-CFG-186 for a number of processes that cannot share the recorded steps.
    """
    values = {**recorded.config, "model": _find_base(recorded.base, recorded.config["model"], model)}
    named = [file for source in data for file in find_files(source) if isinstance(file, Path)]
    sources = {
        split: _found_sources(values["data"][split], [file for file in recorded.data if file.split == split], named)
        for split in ("train", "eval")
    }
    config = RunConfig(**{**values, "data": {**values["data"], **sources}})
    config = with_settings(config, report_to="none", sample_prompts=0, run_name=None)
    return _shared_by(config, int(recorded.versions["processes"]), dist.world_size())


def _find_base(base: BaseModel, name: str, named: str | None) -> str:
    """Return the first place at which the recorded base model lies."""
    is_local = Path(base.path).is_dir() if base.path else False
    names = [name] if name == registry.DEMO else [base.path] if is_local else [name]
    refusal: LorakeetError | None = None
    for candidate in [*names, *([named] if named else [])]:
        try:
            directory = registry.resolve(candidate)
        except ModelError as error:
            refusal = refusal or error
            continue
        differing = _differing(base, directory)
        if differing is None:
            return candidate
        refusal = ModelError(
            "E-MODEL-122", f"is not the base model that was trained on: {differing}", place=str(directory), fix=_FIX_BASE
        )
    assert refusal is not None
    if refusal.code == "E-MODEL-122":
        raise refusal
    raise ModelError(
        "E-MODEL-122", f"is not the base model that was trained on: {refusal.message}", place=base.path or name, fix=_FIX_BASE
    )


_FIX_BASE = "Name a directory that holds it as it was with --model"


def _differing(base: BaseModel, directory: Path) -> str | None:
    """Return in what a directory is not the recorded base model."""
    now = defining_files(directory)
    for name in {**base.files, **now}:
        if base.files.get(name) != now.get(name):
            return f"{name} {_hashes(now.get(name), base.files.get(name))}"
    fingerprint = weights.fingerprint(directory)
    return None if fingerprint == base.sha256 else f"the hash of its weights {_hashes(fingerprint, base.sha256)}"


def _hashes(now: str | None, then: str | None) -> str:
    """Say how a hash has changed."""
    return f"is {now[:_SHOWN] if now else 'gone'}, was {then[:_SHOWN] if then else 'not there'}"


def _found_sources(sources: list[str] | None, files: list[DataFile], named: list[Path]) -> list[str] | None:
    """Return a run's sources with its local files in place of their names, each at its weight."""
    if sources is None:
        return None
    found = []
    for source in sources:
        own = [file for file in files if file.source == source]
        weight = _WEIGHT.search(source) if own and not own[0].path.endswith(Path(source).name) else None
        found += [f"{_find_file(file, named)}{weight[0] if weight else ''}" for file in own] or [source]
    return found


def _find_file(file: DataFile, named: list[Path]) -> Path:
    """Return the first place at which a recorded file lies."""
    recorded = Path(file.path)
    there = [recorded] if recorded.is_absolute() and recorded.is_file() else []
    for candidate in [*there, *named]:
        if remembered_sha256(candidate) == file.sha256:
            return candidate
    if there or any(path.name == recorded.name for path in named):
        changed = next((path for path in named if path.name == recorded.name), recorded)
        hashes = _hashes(remembered_sha256(changed), file.sha256)
        raise DataError(
            "E-DATA-197", f"is not the file that was trained on: its SHA-256 {hashes}", place=str(changed), fix=_FIX_DATA
        )
    raise DataError("E-DATA-197", "is not the file that was trained on: it is gone", place=file.path, fix=_FIX_DATA)


_FIX_DATA = "Name the file as it was with --data"


def _shared_by(config: RunConfig, then: int, now: int) -> RunConfig:
    """Return a configuration whose steps take the same rows with another number of processes."""
    settings = config.training_config
    accumulated, rest = divmod(settings.gradient_accumulation_steps * then, now)
    if rest:
        raise ConfigError(
            "E-CFG-186",
            f"{now} processes cannot share the steps of a run of {then}",
            place="torchrun",
            fix=f"Start {then} processes, or one",
        )
    return with_settings(config, gradient_accumulation_steps=accumulated)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads while the block runs: how a sum is shared decides how it is rounded."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_NUDGES = {False: (1e-6, "float32"), True: (4e-3, "bfloat16")}
"""By how much of themselves sums in each type are usually off, by whether that is bfloat16."""


def rounded_otherwise(config: RunConfig) -> tuple[RunConfig, str]:
    """Return the same training with other roundings, and in words what it does: the rows of each step in other passes.

    Dropout and noise are drawn for each pass, so that with them, or with one row a step, the learning rate is nudged instead.
    """
    settings = config.training_config
    rows, passes = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    is_random = config.peft_config.lora_dropout > 0 or bool(settings.neftune_noise_alpha)
    if is_random or rows * passes == 1:
        nudge, name = _NUDGES[bool(config.bf16)]
        nudged = with_settings(config, learning_rate=settings.learning_rate * (1 + nudge))
        return nudged, f"trained with a learning rate larger by {nudge:g} of itself, which is what sums in {name} are off by"
    before = f"{passes} of {rows}"
    if rows > 1:
        factor = 2 if rows % 2 == 0 else rows
        rows, passes = rows // factor, passes * factor
    else:
        factor = 2 if passes % 2 == 0 else passes
        rows, passes = rows * factor, passes // factor
    changed = with_settings(config, per_device_train_batch_size=rows, gradient_accumulation_steps=passes)
    return changed, f"added up in passes of {passes} times {rows} rows instead of {before}"
