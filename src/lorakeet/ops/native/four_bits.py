"""The C++ kernel that turns four-bit weights into bfloat16 or float32 on the CPU (four_bits.cpp).

`ops/nf4.py` says what is computed and holds the reference.
"""

import ctypes

import torch
from torch import Tensor

from lorakeet.ops.native import load_kernel, pointer

_CHUNK = 64
_DTYPES = (torch.bfloat16, torch.float32)


def can_dequantize(out: Tensor) -> bool:
    """Tell whether the kernel can write blocks of this size and type, (num_blocks, blocksize), on this machine."""
    is_fit = out.dtype in _DTYPES and out.device.type == "cpu" and out.shape[-1] % _CHUNK == 0
    return is_fit and load_kernel("four_bits") is not None


def dequantize_into(
    out: Tensor, packed: Tensor, code: Tensor, first_block: int, absmax: Tensor, table: Tensor,
    nested_absmax: Tensor | None, nested_offset: Tensor | None,
) -> None:  # fmt: skip
    """Write the weights of some blocks to `out`; the arguments are those of `nf4.dequantize_into`, and two tables.

    `code` holds the 16 values, `table` the 256 that a quantised `absmax` chooses among; both float32.
    """
    library = load_kernel("four_bits")
    assert library is not None
    is_nested = nested_absmax is not None
    library.lorakeet_dequantize(
        pointer(out), int(out.dtype == torch.bfloat16), pointer(packed), pointer(code),
        pointer(None if is_nested else absmax), pointer(absmax if is_nested else None), pointer(table),
        pointer(nested_absmax), pointer(nested_offset),
        ctypes.c_int64(first_block), ctypes.c_int64(out.shape[0]), ctypes.c_int64(out.shape[1]),
    )  # fmt: skip
