"""One safetensors file: check its header before anything is believed, map its tensors, write it front to back.

data in: a path → out: `TensorEntry` for every tensor, and the mapped bytes of one tensor at a time.
The file is a stranger's: sizes are capped, offsets must tile the data exactly, and nothing is allocated by what
the header claims. Knows nothing of models.

Layout: 8 bytes length of the header (little endian), the header (JSON), the tensors' bytes.
Source: https://huggingface.co/docs/safetensors/index#format
"""

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from lorakeet.errors import ModelError

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 20_000
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTIZED_DTYPES = {**DTYPES, "U8": torch.uint8, "I8": torch.int8}
"""Those of files that this program has written for itself."""
_NAMES = {dtype: name for name, dtype in QUANTIZED_DTYPES.items()}
_DOWNLOAD_AGAIN = "Download the file again"


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Offset of its first byte, from the start of the file."""

    @property
    def num_bytes(self) -> int:
        """Give the tensor's size."""
        return math.prod(self.shape) * self.dtype.itemsize


class MappedFile:
    """A safetensors file in private memory mapping."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping

    def read(self, entry: TensorEntry) -> torch.Tensor:
        """Copy a tensor into memory of its own.

        A view of the mapping would save the copy, but another process could then change or cut the weights of a
        running model by writing to the file, and small file pages make matrix products slower.
        """
        # Copied as bytes: the format does not promise that a tensor is aligned to its elements.
        data = torch.empty(entry.num_bytes, dtype=torch.uint8)
        data.copy_(torch.frombuffer(self._mapping, dtype=torch.uint8, count=entry.num_bytes, offset=entry.begin))
        self._forget(entry)
        return data.view(entry.dtype).view(entry.shape)

    def digest(self, entry: TensorEntry, hasher: Any) -> str:
        """Feed a tensor's bytes to a hashlib object and return its hexadecimal digest."""
        with memoryview(self._mapping) as view, view[entry.begin : entry.begin + entry.num_bytes] as data:
            hasher.update(data)
        self._forget(entry)
        return hasher.hexdigest()

    def _forget(self, entry: TensorEntry) -> None:
        """Give the tensor's pages back, so that a read file never counts beside the copies made of it."""
        if hasattr(self._mapping, "madvise"):
            begin = entry.begin - entry.begin % mmap.PAGESIZE
            length = entry.begin + entry.num_bytes - begin
            self._mapping.madvise(mmap.MADV_DONTNEED, begin, length)


@contextmanager
def mapped(file: Path) -> Iterator[MappedFile]:
    """Map a file that `read_header` has accepted, for as long as the block runs."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        yield MappedFile(mapping)


def read_header(file: Path, dtypes: Mapping[str, torch.dtype] = DTYPES) -> dict[str, TensorEntry]:
    """Read and check where every tensor of a file lies, in the order of their bytes.

    Raises: ModelError where the file is missing, empty, cut, oversized, or does not add up.
    """
    place = str(file)
    if not file.is_file():
        raise ModelError("E-MODEL-121", "no such file, or not a regular one", place=place, fix=_DOWNLOAD_AGAIN)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            text = _header_text(stream, size, place)
    except OSError as error:
        raise ModelError("E-MODEL-121", f"cannot be read: {error.strerror}", place=place) from None
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ModelError("E-MODEL-105", f"header is not JSON: {error}", place=place, fix=_DOWNLOAD_AGAIN) from None
    if not isinstance(header, dict):
        raise ModelError("E-MODEL-105", "header is no JSON object", place=place, fix=_DOWNLOAD_AGAIN)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ModelError("E-MODEL-58", f"header too large: {len(header)} tensors, more than {MAX_TENSORS}", place=place)
    return _entries(header, 8 + len(text), size, place, dtypes)


def _header_text(stream: IO[bytes], size: int, place: str) -> bytes:
    if size == 0:
        raise ModelError("E-MODEL-55", "is empty (0 bytes)", place=place, fix=_DOWNLOAD_AGAIN)
    start = stream.read(8)
    if start == b"version ":
        raise ModelError(
            "E-MODEL-106", "is a Git LFS pointer, not the weights", place=place, fix="Run git lfs pull"
        )  # fmt: skip
    length = int.from_bytes(start, "little")
    if len(start) == 8 and length > MAX_HEADER_BYTES:
        raise ModelError(
            "E-MODEL-58", f"header too large: {length} bytes, more than {MAX_HEADER_BYTES}", place=place,
            fix=_DOWNLOAD_AGAIN,
        )  # fmt: skip
    text = stream.read(length)
    if len(start) < 8 or len(text) < length:
        raise ModelError(
            "E-MODEL-56", f"is cut: {size} bytes, expected at least {8 + length}", place=place, fix=_DOWNLOAD_AGAIN
        )
    return text


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is repeated")
    return values


def _entries(
    header: Mapping[str, Any], data_begin: int, size: int, place: str, dtypes: Mapping[str, torch.dtype]
) -> dict[str, TensorEntry]:
    """Turn the header into entries whose bytes tile the rest of the file without gap or overlap."""
    spans = {name: _span(name, value, place) for name, value in header.items()}
    entries, expected = {}, 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        dtype, shape = _dtype(name, header[name], place, dtypes), _shape(name, header[name], place)
        entry = TensorEntry(dtype, shape, data_begin + begin)
        if begin != expected or end - begin != entry.num_bytes:
            raise _bad_offsets(
                f"bad offsets of tensor {name}: {begin} to {end}, expected {expected} to {expected + entry.num_bytes}",
                place,
            )
        entries[name], expected = entry, end
    if data_begin + expected > size:
        raise ModelError(
            "E-MODEL-56", f"is cut: {size} bytes, expected {data_begin + expected}", place=place, fix=_DOWNLOAD_AGAIN
        )
    if data_begin + expected < size:
        raise _bad_offsets(f"has {size - data_begin - expected} bytes after its last tensor", place)
    return entries


def _span(name: str, value: Any, place: str) -> tuple[int, int]:
    offsets = value.get("data_offsets") if isinstance(value, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(n) is not int or n < 0 for n in offsets):
        raise _bad_offsets(f"bad offsets of tensor {name}: {offsets!r}", place)
    return offsets[0], offsets[1]


def _dtype(name: str, value: Mapping[str, Any], place: str, dtypes: Mapping[str, torch.dtype]) -> torch.dtype:
    found = value.get("dtype")
    if not isinstance(found, str) or found not in dtypes:
        raise ModelError(
            "E-MODEL-102", f"tensor {name} is of type {found}; expected {', '.join(dtypes)}", place=place,
            fix="Use the model's 16-bit or 32-bit weights",
        )  # fmt: skip
    return dtypes[found]


def _shape(name: str, value: Mapping[str, Any], place: str) -> tuple[int, ...]:
    shape = value.get("shape")
    if not isinstance(shape, list) or len(shape) > 8 or any(type(n) is not int or not 0 <= n < 2**40 for n in shape):
        raise _bad_offsets(f"bad shape of tensor {name}: {shape!r}", place)
    return tuple(shape)


def _bad_offsets(message: str, place: str) -> ModelError:
    return ModelError("E-MODEL-59", message, place=place, fix=_DOWNLOAD_AGAIN)


class SafetensorsWriter:
    """Write a file whose tensors' names, shapes and types are known before their values, in any order."""

    def __init__(
        self, file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype | Mapping[str, torch.dtype]
    ) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._dtypes = dict.fromkeys(shapes, dtype) if isinstance(dtype, torch.dtype) else dict(dtype)
        offsets, end = {}, 0
        for name, shape in shapes.items():
            begin, end = end, end + math.prod(shape) * self._dtypes[name].itemsize
            header[name] = {"dtype": _NAMES[self._dtypes[name]], "shape": list(shape), "data_offsets": [begin, end]}
            offsets[name] = begin
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._shapes = dict(shapes)
        self._begins = {name: 8 + len(text) + begin for name, begin in offsets.items()}
        self._stream = file.open("xb")
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor, cast to its type in the file."""
        assert tuple(tensor.shape) == self._shapes[name]
        data = tensor.detach().to(device="cpu", dtype=self._dtypes[name]).contiguous()
        self._stream.seek(self._begins[name])
        self._stream.write(data.flatten().view(torch.uint8).numpy().data)

    def close(self) -> None:
        """Make sure that the file has reached the disk."""
        if not self._stream.closed:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
