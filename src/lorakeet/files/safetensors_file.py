"""One safetensors file: check its header before anything is believed, map its tensors, write it front to back.

data in: a path → out: `TensorEntry` for every tensor, the mapped bytes of one tensor at a time, the metadata; and
the way back. The file is a stranger's: sizes are capped, offsets must tile the data exactly, and nothing is allocated
by what the header claims. Knows nothing of models or adapters: who reads says of which kind a complaint is.

Layout: 8 bytes length of the header (little endian), the header (JSON), the tensors' bytes.
Source: https://huggingface.co/docs/safetensors/index#format
"""

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from lorakeet.errors import LorakeetError
from lorakeet.files.durable import NewFile

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 20_000
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_GET_AGAIN = "Get the file again"

Refusal = type[LorakeetError]
"""The kind of error that a reader raises, whose `family` becomes part of the code."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Offset of its first byte, from the start of the file."""

    @property
    def num_bytes(self) -> int:
        """Return the tensor's size."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """What a file says about itself."""

    entries: dict[str, TensorEntry]
    """Tensors by name, in the order of their bytes."""
    metadata: dict[str, Any]
    """Texts by name, of any other kind only where a stranger wrote them."""


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
        if entry.num_bytes:
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
        """Release the tensor's pages, so that a read file never counts beside the copies made of it."""
        if hasattr(self._mapping, "madvise"):
            begin = entry.begin - entry.begin % mmap.PAGESIZE
            length = entry.begin + entry.num_bytes - begin
            self._mapping.madvise(mmap.MADV_DONTNEED, begin, length)


@contextmanager
def mapped(file: Path) -> Iterator[MappedFile]:
    """Map a file that `read_header` has accepted, for as long as the block runs."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        yield MappedFile(mapping)


def read_tensors(file: Path, kind: Refusal) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read all tensors of a file and its metadata.

    Raises: `kind`, as `read_header`.
    """
    header = read_header(file, kind)
    with mapped(file) as mapping:
        return {name: mapping.read(entry) for name, entry in header.entries.items()}, header.metadata


def read_header(file: Path, kind: Refusal) -> Header:
    """Read and check where every tensor of a file lies.

    Raises: `kind` with number 121 if there is no such file, 55 if it is empty, 56 cut, 58 oversized, 59 if it
    does not add up.
    """
    refuse = _Refuse(kind, str(file))
    if not file.is_file():
        raise refuse(121, "no such file, or not a regular one")
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            text = _header_text(stream, size, refuse)
    except OSError as error:
        raise refuse(121, f"cannot be read: {error.strerror}") from None
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise refuse(59, f"header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise refuse(59, "header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if len(header) > MAX_TENSORS:
        raise refuse(58, f"header too large: {len(header)} tensors, more than {MAX_TENSORS}")
    return Header(_entries(header, 8 + len(text), size, refuse), metadata if isinstance(metadata, dict) else {})


@dataclass(frozen=True)
class _Refuse:
    """Makes the reader's errors, all of one kind and about one file.

    These are E-MODEL-55, E-MODEL-56, E-MODEL-58, E-MODEL-59, E-MODEL-121; E-ADPT-55, E-ADPT-56, E-ADPT-58, E-ADPT-59,
    E-ADPT-121; and E-CKPT-55, E-CKPT-56, E-CKPT-58, E-CKPT-59, E-CKPT-121.
    """

    kind: Refusal
    place: str

    def __call__(self, number: int, message: str, fix: str = _GET_AGAIN) -> LorakeetError:
        return self.kind(f"E-{self.kind.family}-{number}", message, place=self.place, fix=fix)


def _header_text(stream: IO[bytes], size: int, refuse: _Refuse) -> bytes:
    if size == 0:
        raise refuse(55, "is empty (0 bytes)")
    start = stream.read(8)
    if start == b"version ":
        raise refuse(59, "is a Git LFS pointer, not the tensors", "Run git lfs pull")
    length = int.from_bytes(start, "little")
    if len(start) == 8 and length > MAX_HEADER_BYTES:
        raise refuse(58, f"header too large: {length} bytes, more than {MAX_HEADER_BYTES}")
    text = stream.read(length)
    if len(start) < 8 or len(text) < length:
        raise refuse(56, f"is cut: {size} bytes, expected at least {8 + length}")
    return text


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is repeated")
    return values


def _entries(header: Mapping[str, Any], data_begin: int, size: int, refuse: _Refuse) -> dict[str, TensorEntry]:
    """Turn the header into entries whose bytes tile the rest of the file without gap or overlap."""
    spans = {name: _span(name, value, refuse) for name, value in header.items()}
    entries, expected = {}, 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        dtype, shape = _dtype(name, header[name], refuse), _shape(name, header[name], refuse)
        entry = TensorEntry(dtype, shape, data_begin + begin)
        if begin != expected or end - begin != entry.num_bytes:
            raise refuse(
                59, f"bad offsets of tensor {name}: {begin} to {end}, expected {expected} to {expected + entry.num_bytes}"
            )
        entries[name], expected = entry, end
    if data_begin + expected > size:
        raise refuse(56, f"is cut: {size} bytes, expected {data_begin + expected}")
    if data_begin + expected < size:
        raise refuse(59, f"has {size - data_begin - expected} bytes after its last tensor")
    return entries


def _span(name: str, value: Any, refuse: _Refuse) -> tuple[int, int]:
    offsets = value.get("data_offsets") if isinstance(value, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(n) is not int or n < 0 for n in offsets):
        raise refuse(59, f"bad offsets of tensor {name}: {offsets!r}")
    return offsets[0], offsets[1]


def _dtype(name: str, value: Mapping[str, Any], refuse: _Refuse) -> torch.dtype:
    found = value.get("dtype")
    if not isinstance(found, str) or found not in DTYPES:
        raise refuse(59, f"tensor {name} is of the unknown type {found}; known: {', '.join(DTYPES)}")
    return DTYPES[found]


def _shape(name: str, value: Mapping[str, Any], refuse: _Refuse) -> tuple[int, ...]:
    shape = value.get("shape")
    if not isinstance(shape, list) or len(shape) > 8 or any(type(n) is not int or not 0 <= n < 2**40 for n in shape):
        raise refuse(59, f"bad shape of tensor {name}: {shape!r}")
    return tuple(shape)


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a new file, one at a time, so that a copy of only one of them is in memory."""
    # Wide types first, so that every tensor is aligned to its elements; within a type by name, as the library does.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    layout = {name: (tuple(tensors[name].shape), tensors[name].dtype) for name in order}
    with SafetensorsWriter(file, layout, metadata) as writer:
        for name in order:
            writer.write(name, tensors[name])


class SafetensorsWriter:
    """Write a file whose tensors' names, shapes and types are known before their values, in any order."""

    def __init__(
        self, file: Path, layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]], metadata: Mapping[str, str] | None = None
    ) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        offsets, end = {}, 0
        for name, (shape, dtype) in layout.items():
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            offsets[name] = begin
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._layout = dict(layout)
        self._begins = {name: 8 + len(text) + begin for name, begin in offsets.items()}
        self._file = NewFile(file)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor, cast to its type in the file."""
        shape, dtype = self._layout[name]
        assert tuple(tensor.shape) == shape
        data = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        if data.numel():
            self._file.write_at(data.flatten().view(torch.uint8).numpy().data, self._begins[name])

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.__exit__(kind, error, trace)
