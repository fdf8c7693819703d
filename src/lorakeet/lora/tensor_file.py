"""One safetensors file, written so that it is whole or absent, and read with limits before it is believed.

data in: named tensors and a small JSON note → out: a file, and back. It knows nothing of adapters or models.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakeet.errors import AdapterError

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_TENSORS = 20_000
NOTE = "lorakeet"
"""The key in the file's metadata under which our note lies, as JSON."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write `tensors` and `note` to `path`, and read them back to see that they are there.

    Raises:
        AdapterError: E-ADPT-68 for a tensor that is not finite, E-ADPT-110 where the file reads back otherwise.
    """
    from safetensors.torch import save_file

    check_finite(path, tensors)
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    # Views of one storage would be refused by safetensors; each tensor is saved for itself.
    storages = [tensor.untyped_storage().data_ptr() for tensor in plain.values()]
    if len(set(storages)) < len(storages):
        plain = {name: tensor.clone() for name, tensor in plain.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(plain, temporary, metadata={"format": "pt", NOTE: json.dumps(dict(note), sort_keys=True)})
        replace_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    written, written_note = read_tensors(path)
    same = written.keys() == plain.keys() and all(torch.equal(written[name], plain[name]) for name in plain)
    if not same or written_note != dict(note):
        raise AdapterError(
            "E-ADPT-110", "the file does not read back as it was written", place=str(path), fix="Check the disk"
        )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file and our note in it ({} where another tool wrote the file).

    Raises:
        AdapterError: E-ADPT-55, 56, 58, 59 for a file that is empty, cut, or whose header cannot be true;
            E-ADPT-68 for a tensor that is not finite.
    """
    from safetensors import SafetensorError, safe_open

    note = _check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise AdapterError("E-ADPT-59", f"bad offsets or tensor: {error}", place=str(path)) from None
    check_finite(path, tensors)
    return tensors, note


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


def replace_durably(temporary: Path, path: Path) -> None:
    """Move a finished temporary file into place, so that a crash leaves the old file or the new one."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _check_header(path: Path) -> dict[str, Any]:
    """Read the header with limits, before the library allocates what it promises; return our note."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise AdapterError("E-ADPT-59", "is not a regular file", place=str(path))
    if status.st_size < 8:
        raise AdapterError("E-ADPT-55", f"the file has {status.st_size} bytes, fewer than its header", place=str(path))
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise AdapterError(
                "E-ADPT-58", f"header too large: {length} bytes; at most {MAX_HEADER_BYTES}", place=str(path)
            )
        raw = file.read(length)
    if len(raw) < length:
        raise AdapterError("E-ADPT-56", f"the file ends in its header: {len(raw)} of {length} bytes", place=str(path))
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise AdapterError("E-ADPT-59", "the header is not a JSON object", place=str(path))
    metadata = header.pop("__metadata__", {})
    if len(header) > MAX_TENSORS:
        raise AdapterError("E-ADPT-58", f"{len(header)} tensors; at most {MAX_TENSORS}", place=str(path))
    _check_extent(path, header, status.st_size - 8 - length)
    return _note_in(metadata)


def _check_extent(path: Path, header: dict[str, Any], data_bytes: int) -> None:
    """See that the tensors fill the file exactly, one after the other."""
    try:
        spans = sorted((*entry["data_offsets"], name) for name, entry in header.items())
    except (TypeError, KeyError):
        raise AdapterError("E-ADPT-59", "a tensor has no data_offsets", place=str(path)) from None
    if any(len(span) != 3 or not isinstance(span[0], int) or not isinstance(span[1], int) for span in spans):
        raise AdapterError("E-ADPT-59", "a tensor's data_offsets are not two integers", place=str(path))
    end = 0
    for start, stop, name in spans:
        if start != end or stop < start:
            raise AdapterError("E-ADPT-59", f'bad offsets of tensor "{name}": {start} to {stop}', place=str(path))
        end = stop
    if end > data_bytes:
        raise AdapterError("E-ADPT-56", f"size mismatch: {data_bytes} of {end} bytes of tensors", place=str(path))
    if end < data_bytes:
        raise AdapterError("E-ADPT-59", f"{data_bytes - end} bytes behind the last tensor", place=str(path))


def _note_in(metadata: object) -> dict[str, Any]:
    """Return our note, or {} where there is none."""
    text = metadata.get(NOTE, "{}") if isinstance(metadata, dict) else "{}"
    try:
        note = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}
