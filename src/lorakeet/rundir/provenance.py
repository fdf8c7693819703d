"""lorakeet.json: what an adapter or an export was made of, so that anybody can check it and train it again.

data in: a run's configuration, data, base model, machine and end → out: one JSON file beside the weights, and back. Adapters
and exports share the format; `training` is the part that `lorakeet reproduce` reads. Whoever loads an adapter does not need it.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorakeet.config import RunConfig
from lorakeet.data.read import find_files
from lorakeet.errors import AdapterError
from lorakeet.files.cache import remembered_sha256
from lorakeet.files.durable import write_file
from lorakeet.files.hashing import file_sha256
from lorakeet.models.registry import DEMO
from lorakeet.models.tokenizer_files import TOKENIZER_FILES
from lorakeet.rundir.metrics_file import read_lines
from lorakeet.version import __version__

RECORD = "lorakeet.json"
"""The name of the file."""
FORMAT = 1
NUMBERS = ("loss", "grad_norm", "learning_rate", "num_tokens", "num_supervised_tokens")
"""What must be equal at each logged step of two equal runs; times and memory never are."""
MOST_STEPS = 1000
"""Logged steps that the record keeps; of more, those at equal distances, and the last."""
_DEFINING = ("config.json", *TOKENIZER_FILES)
"""Files of a base model, beside its weights, that decide what is trained."""


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file that a run read its rows from."""

    source: str
    """How the run's configuration names it, or what it was found in."""
    split: str
    """"train" or "eval"."""
    path: str
    """Where it lay."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The model that an adapter was trained on."""

    name: str
    path: str
    """Where it lay."""
    sha256: str
    """Fingerprint of its weights."""
    files: dict[str, str]
    """SHA-256 of its configuration and tokenizer files."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How an adapter was trained."""

    config: dict[str, Any]
    """The whole configuration, as config.yaml has it."""
    base: BaseModel
    data: tuple[DataFile, ...]
    """Local files; what comes with Lorakeet, from the hub or through a pipe is known by the rows' hashes alone."""
    identity: dict[str, str]
    """Hashes of the base model and of the encoded rows, type of the numbers, rows of a step."""
    versions: dict[str, str]
    """Versions, machine and kernels."""
    commit: str | None
    """Of Lorakeet's own code, if it ran from a git checkout."""
    began_with: dict[str, str]
    """Versions and machine when the run began, if it was resumed with others."""
    steps: list[dict[str, Any]]
    """Numbers of the logged steps."""
    step: int
    """The step whose adapter was kept."""
    loss: float
    """The last logged loss."""
    sha256: str
    """Of the adapter's weights file."""

    def without_paths(self) -> "Provenance":
        """Leave out where things lay on the machine that trained, which is nobody else's business."""
        data = [dataclasses.replace(file, source=Path(file.source).name, path=Path(file.path).name) for file in self.data]
        local = {file.source for file in self.data}
        sources = {
            split: [Path(source).name if source in local else source for source in self.config["data"][split] or []] or None
            for split in ("train", "eval")
        }
        config = self.config | {
            "model": _without_path(self.config["model"]),
            "data": self.config["data"] | sources,
            "training_config": self.config["training_config"] | {"logging_dir": None},
        }
        base = dataclasses.replace(self.base, name=_without_path(self.base.name), path="")
        return dataclasses.replace(self, config=config, data=tuple(data), base=base)


def _without_path(model: str) -> str:
    """Return a model directory's name; a hub id or an alias as it is."""
    return Path(model).name if model.startswith(("/", "~", ".")) or Path(model).is_dir() else model


def data_files(config: RunConfig) -> tuple[DataFile, ...]:
    """Return the local files of a run's rows with their hashes. Raises: DataError if one is gone."""
    return tuple(
        DataFile(source=source, split=split, path=str(file.absolute()), sha256=remembered_sha256(file))
        for split, sources in (("train", config.data.train), ("eval", config.data.eval or []))
        for source in sources
        if source != DEMO
        for file in find_files(source)
        if isinstance(file, Path)
    )


def base_model(directory: Path, name: str, sha256: str) -> BaseModel:
    """Describe a base model; `sha256` is the fingerprint of its weights."""
    return BaseModel(name=name, path=str(directory.absolute()), sha256=sha256, files=defining_files(directory))


def defining_files(directory: Path) -> dict[str, str]:
    """Return the hashes of a model's configuration and tokenizer files."""
    return {name: remembered_sha256(directory / name) for name in _DEFINING if (directory / name).is_file()}


def logged_steps(metrics: Path) -> list[dict[str, Any]]:
    """Return what a run's rows of metrics say of its steps, at most MOST_STEPS of them."""
    rows = [{key: row[key] for key in ("step", *NUMBERS) if key in row} for row in read_lines(metrics) if "loss" in row]
    stride = -(-len(rows) // MOST_STEPS)
    return rows[::stride] + ([rows[-1]] if rows and (len(rows) - 1) % stride else []) if rows else []


def write_record(
    directory: Path,
    *,
    format: str,
    dtype: str,
    base: Mapping[str, str],
    adapter: Mapping[str, str],
    template: str,
    training: Provenance | None,
    **more: Any,
) -> None:
    """Write the record of what lies in `directory`.

    Args:
        format: "adapter" as training wrote it, or the name of an export's format.
        base, adapter: "name" and "sha256" of each.
        more: what else is to be said of an export.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != RECORD)
    content = {
        "record": FORMAT,
        "lorakeet": __version__,
        "format": format,
        "dtype": dtype,
        "base": base,
        "adapter": adapter,
        "template": template,
        "files": {
            str(file.relative_to(directory)): {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files
        },
        **more,
        "training": None if training is None else asdict(training),
    }
    write_file(directory / RECORD, _written(content).encode())


def _written(content: dict[str, Any]) -> str:
    """Write JSON with a line for each logged step, not for each of its numbers."""
    training = content["training"]
    steps: Sequence[Any] = training.pop("steps") if training else []
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if training is None:
        return text + "\n"
    lines = ",\n".join(f"   {json.dumps(step)}" for step in steps)
    return text.removesuffix("\n }\n}") + f',\n  "steps": [\n{lines}\n  ]\n }}\n}}\n'


def find_provenance(directory: Path) -> Provenance | None:
    """Read how the adapter in a directory was trained; None if no record says so.

    Raises: AdapterError E-ADPT-241 for a record that is none.
    """
    file = directory / RECORD
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        training = content.get("training")
        if training is None:
            return None
        parts = {"base": BaseModel(**training["base"]), "data": tuple(DataFile(**one) for one in training["data"])}
        return Provenance(**(training | parts))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise AdapterError(
            "E-ADPT-241",
            "is damaged, or of another version of lorakeet",
            place=str(file),
            fix="Copy the adapter again, or install the version that wrote it",
        ) from None


def read_provenance(directory: Path) -> Provenance:
    """Read how the adapter in a directory was trained.

    Raises: AdapterError E-ADPT-240 if nothing says so, 241 for a record that cannot be read.
    """
    found = find_provenance(directory)
    if found is None:
        raise AdapterError(
            "E-ADPT-240",
            f"does not say how it was trained: it has no {RECORD} of a training run",
            place=str(directory),
            fix="Name an adapter that lorakeet train has written",
        )
    return found
