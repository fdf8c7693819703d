"""The C++ kernel that unpacks four-bit weights on the CPU, or multiplies a few rows by them (four_bits.cpp).

`quant/nf4.py` says what is computed and holds the reference.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from lorakeet.machine.native_code import load_kernel, pointer

SOURCE = Path(__file__).with_name("four_bits.cpp")
_CHUNK = 64
_DTYPES = (torch.bfloat16, torch.float32)


def can_dequantize(out: Tensor) -> bool:
    """Tell whether the kernel can write blocks of this size and type, (num_blocks, blocksize), on this machine."""
    is_fit = out.dtype in _DTYPES and out.device.type == "cpu" and out.shape[-1] % _CHUNK == 0
    return is_fit and load_kernel(SOURCE) is not None


def can_multiply(x_TI: Tensor, blocksize: int) -> bool:
    """Tell whether the kernel can multiply these rows, few enough, by weights whose blocks lie within rows."""
    num_rows, in_features = x_TI.shape
    has_whole_blocks = blocksize % _CHUNK == 0 and in_features % blocksize == 0
    is_fit = x_TI.dtype in _DTYPES and x_TI.device.type == "cpu" and has_whole_blocks
    library = load_kernel(SOURCE) if is_fit else None
    return library is not None and library.lorakeet_most_rows(x_TI.dtype == torch.bfloat16) >= num_rows


def dequantize_into(
    out: Tensor,
    packed: Tensor,
    code: Tensor,
    first_block: int,
    absmax: Tensor,
    table: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
) -> None:
    """Write the weights of some blocks to `out`; the arguments are those of `nf4.dequantize_into`, and two tables.

    `code` holds the 16 values, `table` the 256 that a quantised `absmax` chooses among; both float32.
    """
    _library().lorakeet_dequantize(
        pointer(out),
        int(out.dtype == torch.bfloat16),
        pointer(packed),
        pointer(code),
        *_scales(absmax, table, nested_absmax, nested_offset),
        ctypes.c_int64(first_block),
        ctypes.c_int64(out.shape[0]),
        ctypes.c_int64(out.shape[1]),
    )


def multiply_into(
    out_TO: Tensor,
    x_TI: Tensor,
    packed: Tensor,
    code: Tensor,
    blocksize: int,
    absmax: Tensor,
    table: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
) -> None:
    """Write `x Wᵀ` to `out`; the arguments are those of `nf4.multiply_into`, and the two tables."""
    (num_rows, in_features), x_TI = x_TI.shape, x_TI.contiguous()
    _library().lorakeet_multiply(
        pointer(out_TO),
        pointer(x_TI),
        int(out_TO.dtype == torch.bfloat16),
        pointer(packed),
        pointer(code),
        *_scales(absmax, table, nested_absmax, nested_offset),
        num_rows,
        ctypes.c_int64(out_TO.shape[1]),
        ctypes.c_int64(in_features),
        ctypes.c_int64(blocksize),
    )


def _library() -> ctypes.CDLL:
    library = load_kernel(SOURCE)
    assert library is not None
    return library


def _scales(
    absmax: Tensor, table: Tensor, nested_absmax: Tensor | None, nested_offset: Tensor | None
) -> tuple[ctypes.c_void_p, ...]:
    """Return the scales as the kernel takes them."""
    is_nested = nested_absmax is not None
    plain, indices = (None, absmax) if is_nested else (absmax, None)
    return tuple(pointer(tensor) for tensor in (plain, indices, table, nested_absmax, nested_offset))
