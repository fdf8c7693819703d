"""The tensors of an adapter in one safetensors file, with a note of ours in its metadata.

data in: named tensors and a small JSON note → out: a file that is whole or absent, and back. Nothing that is not
finite passes, either way.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakeet.errors import AdapterError
from lorakeet.files import safetensors_file
from lorakeet.files.durable import new_file

NOTE = "lorakeet"
"""The key in the file's metadata under which our note lies, as JSON."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write `tensors` and `note` to `path`, and read them back to see that they are there.

    Raises:
        AdapterError: E-ADPT-68 for a tensor that is not finite, E-ADPT-110 if the file reads back otherwise.
    """
    check_finite(path, tensors)
    with new_file(path) as draft:
        safetensors_file.write_tensors(draft, tensors, {NOTE: json.dumps(dict(note), sort_keys=True)})
        _check_same(draft, tensors, note)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file and our note in it ({} if another tool wrote the file).

    Raises:
        AdapterError: E-ADPT-55, 56, 58, 59, 121 for a file that is empty, cut, or whose header cannot be true;
            E-ADPT-68 for a tensor that is not finite.
    """
    tensors, metadata = safetensors_file.read_tensors(path, AdapterError)
    check_finite(path, tensors)
    return tensors, _note_in(metadata)


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity, which would ruin whatever they are added to."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(
                "E-ADPT-68",
                f'tensor "{name}" holds NaN or infinity',
                place=str(path),
                fix="Train again with a smaller learning rate; an earlier checkpoint may be sound",
            )


def _check_same(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Read a file and compare it with what was to be written."""
    written, written_note = read_tensors(path)
    same = written.keys() == tensors.keys() and all(torch.equal(written[key], tensors[key].cpu()) for key in tensors)
    if not same or written_note != dict(note):
        raise AdapterError("E-ADPT-110", "the file does not read back as it was written", place=str(path), fix="Check the disk")


def _note_in(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return our note, or {} if there is none."""
    try:
        note = json.loads(metadata.get(NOTE, "{}"))
    except (TypeError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}
