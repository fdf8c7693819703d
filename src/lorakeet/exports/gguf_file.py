"""A GGUF file, written tensor by tensor: metadata first, then what was planned, in that order.

data in: metadata, (name, shape, type) of every tensor, then their values in float32 → out: one file on disk. What is
in memory is one tensor and what becomes of it. Knows no architecture and no tokenizer.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lorakeet.errors import MissingExtraError

# Name: (tensor type, file type, tensor type of the embedding and the output), as the package gguf calls them.
TYPES = {
    "f32": ("F32", "ALL_F32", "F32"),
    "f16": ("F16", "MOSTLY_F16", "F16"),
    "bf16": ("BF16", "MOSTLY_BF16", "BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0", "Q8_0"),
    "q5_1": ("Q5_1", "MOSTLY_Q5_1", "Q8_0"),
    "q5_0": ("Q5_0", "MOSTLY_Q5_0", "Q8_0"),
    "q4_1": ("Q4_1", "MOSTLY_Q4_1", "Q8_0"),
    "q4_0": ("Q4_0", "MOSTLY_Q4_0", "Q8_0"),
}
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PIECE = 16 * 2**20
"""Elements that are quantised at once: the package makes several copies of them."""


@dataclass(frozen=True)
class Planned:
    """A tensor to come."""

    name: str
    shape: tuple[int, ...]
    """Slowest dimension first, as torch has it."""
    kind: str
    """One of the package's types, such as Q8_0."""


def fitting_type(kind: str, shape: tuple[int, ...]) -> str:
    """Return `kind`, or F16 where rows do not divide into its blocks, or F32 for a vector."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) < 2:
        return "F32"
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return kind if shape[-1] % block == 0 else "F16"


class GgufFile:
    """A file being written; `metadata` is the package's own writer, for its `add_...` methods."""

    def __init__(self, path: Path, architecture: str) -> None:
        gguf = require_gguf()
        self.path, self.metadata = path, gguf.GGUFWriter(None, architecture)

    def begin(self, planned: Iterable[Planned]) -> None:
        """Write the metadata and where every tensor will lie."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        self._coming = list(planned)
        for tensor in self._coming:
            kind = GGMLQuantizationType[tensor.kind]
            block, num_block_bytes = GGML_QUANT_SIZES[kind]
            num_bytes = torch.Size(tensor.shape).numel() // block * num_block_bytes
            self.metadata.add_tensor_info(tensor.name, tensor.shape, _numpy_dtype(), num_bytes, kind)
        self.metadata.write_header_to_file(self.path)
        self.metadata.write_kv_data_to_file()
        self.metadata.write_ti_data_to_file()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next planned tensor."""
        planned = self._coming.pop(0)
        assert (planned.name, planned.shape) == (name, tuple(tensor.shape)), (planned, name, tensor.shape)
        self.metadata.write_tensor_data(encoded(tensor, planned.kind))

    def __enter__(self) -> "GgufFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.metadata.close()
        if error is None:
            assert not self._coming, self._coming
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def encoded(tensor: torch.Tensor, kind: str) -> Any:
    """Return the bytes of a tensor in one of the types, as a numpy array of bytes, rounded from float32."""
    import numpy
    from gguf import GGMLQuantizationType, quants

    if kind in _PLAIN:
        return tensor.contiguous().to(_PLAIN[kind]).view(torch.uint8).numpy()
    values = tensor.float().numpy()
    num_rows = max(1, _PIECE // values.shape[-1])
    pieces = [values[start : start + num_rows] for start in range(0, len(values), num_rows)]
    return numpy.concatenate([quants.quantize(piece, GGMLQuantizationType[kind]) for piece in pieces])


def num_bytes(planned: Iterable[Planned]) -> int:
    """Return how many bytes the tensors will take."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    total = 0
    for tensor in planned:
        block, num_block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.kind]]
        total += torch.Size(tensor.shape).numel() // block * num_block_bytes
    return total


def require_gguf() -> Any:
    """Return the package gguf. Raises: MissingExtraError without it."""
    try:
        import gguf
    except ImportError:
        raise MissingExtraError.of("gguf", "gguf", "A GGUF file") from None
    return gguf


def _numpy_dtype() -> Any:
    import numpy

    return numpy.dtype(numpy.float32)
