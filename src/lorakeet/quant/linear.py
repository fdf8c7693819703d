"""Linear layers whose frozen weight is stored in 4 or 8 bits, forward and backward, without keeping a 16-bit copy.

data in: activations, a quantised weight → out: activations, as if the weight had been dequantised first. The backward
pass dequantises again: the 16-bit weight lives in one buffer that every layer writes anew. The weight gets no gradient.

On a CPU the forward pass dequantises some rows, multiplies by them while they are in the cache, and takes the next
ones; a generated token is multiplied by weights that are never written at all. On CUDA bitsandbytes dequantises. The
activations stay 16-bit, in 8-bit layers too, so that there are no outliers to take apart as LLM.int8() must.

Legend: T tokens (any leading axes), I input width, O output width.
"""

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lorakeet.errors import ModelError
from lorakeet.machine.compiling import compiled
from lorakeet.quant import nf4

BLOCK_WEIGHTS = 3 << 20
"""Weights dequantised at once in the forward pass: 6 MB in bfloat16."""
_TILE = 64
"""Rows of a weight that a matrix product takes at once; other numbers of rows slow it down."""

# A buffer a thread: two models may run at once.
_buffers = threading.local()


def _buffer(size: int, like: Tensor) -> Tensor:
    """Return memory for `size` numbers of the type of `like`, whose content the next call may overwrite."""
    key = str(like.dtype)
    kept: Tensor | None = getattr(_buffers, key, None)
    if kept is None or len(kept) < size:
        with torch.inference_mode(False):  # or training could not write to what a chat has made
            kept = torch.empty(size, dtype=like.dtype)
        setattr(_buffers, key, kept)
    return kept[:size]


# --- 4 bits ----------------------------------------------------------------------------------------------------------


def linear_4bit(
    x_TI: Tensor, packed: Tensor, scales: nf4.Scales, bias_O: Tensor | None, out_features: int, quant_type: str, blocksize: int
) -> Tensor:
    """Compute `x Wᵀ + bias` with W of (out_features, I), whose gradient flows to x and bias alone.

    Equal to the product with the dequantised weight to the bit, but for a few rows without gradients, as in generation,
    whose sums may run in another order.
    """
    nested, is_exact = (scales.nested_absmax, scales.nested_offset), torch.is_grad_enabled()
    return linear_4bit_op(x_TI, packed, scales.absmax, *nested, bias_O, out_features, quant_type, blocksize, is_exact)


def dequantize_4bit(
    packed: Tensor, scales: nf4.Scales, shape: tuple[int, int], dtype: torch.dtype, quant_type: str, blocksize: int
) -> Tensor:
    """Return the whole weight in memory of its own, (O, I)."""
    weight = torch.empty(0, dtype=dtype, device=packed.device)
    return _weight_4bit(weight, packed, scales, shape, quant_type, blocksize).clone()


@torch.library.custom_op("lorakeet::linear_4bit", mutates_args=(), device_types="cpu")
def linear_4bit_op(
    x_TI: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias_O: Tensor | None,
    out_features: int,
    quant_type: str,
    blocksize: int,
    is_exact: bool,
) -> Tensor:
    in_features = x_TI.shape[-1]
    scales = nf4.Scales(absmax, nested_absmax, nested_offset)
    if in_features % blocksize:  # a block spans rows
        weight_OI = _weight_4bit(x_TI, packed, scales, (out_features, in_features), quant_type, blocksize)
        return F.linear(x_TI, weight_OI, bias_O)
    rows_x = x_TI.reshape(-1, in_features)
    result = x_TI.new_empty(*x_TI.shape[:-1], out_features)
    out = result.view(-1, out_features)
    if not is_exact and bias_O is None and nf4.can_multiply(rows_x, blocksize):
        nf4.multiply_into(out, rows_x, packed, scales, quant_type, blocksize)
        return result
    blocks, blocks_a_row = packed.view(-1, blocksize // 2), in_features // blocksize
    step = max(1, BLOCK_WEIGHTS // in_features)
    step -= step % _TILE if step > _TILE else 0
    for start in range(0, out_features, step):
        rows = slice(start, min(start + step, out_features))
        num_rows = rows.stop - start
        weight = _buffer(num_rows * in_features, x_TI)
        first, last = rows.start * blocks_a_row, rows.stop * blocks_a_row
        nf4.dequantize_into(weight.view(-1, blocksize), blocks[first:last], scales, quant_type, first_block=first)
        weight_IR = weight.view(num_rows, in_features).t()
        if bias_O is None:
            torch.mm(rows_x, weight_IR, out=out[:, rows])
        else:
            torch.addmm(bias_O[rows], rows_x, weight_IR, out=out[:, rows])
    return result  # not a view: whoever adds to it does so in place


@linear_4bit_op.register_kernel("cuda")
def _(
    x_TI: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias_O: Tensor | None,
    out_features: int,
    quant_type: str,
    blocksize: int,
    is_exact: bool,
) -> Tensor:
    from bitsandbytes.autograd._functions import matmul_4bit

    scales = nf4.Scales(absmax, nested_absmax, nested_offset)
    shape = (out_features, x_TI.shape[-1])
    state = _bitsandbytes_state(scales, shape, x_TI.dtype, quant_type, blocksize)
    return matmul_4bit(x_TI, packed.t(), quant_state=state, bias=bias_O)


@linear_4bit_op.register_fake
def _(
    x_TI: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias_O: Tensor | None,
    out_features: int,
    quant_type: str,
    blocksize: int,
    is_exact: bool,
) -> Tensor:
    return x_TI.new_empty(*x_TI.shape[:-1], out_features)


@torch.library.custom_op("lorakeet::linear_4bit_backward", mutates_args=())
def linear_4bit_backward(
    grad_TO: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    in_features: int,
    quant_type: str,
    blocksize: int,
) -> Tensor:
    scales = nf4.Scales(absmax, nested_absmax, nested_offset)
    return grad_TO @ _weight_4bit(grad_TO, packed, scales, (grad_TO.shape[-1], in_features), quant_type, blocksize)


@linear_4bit_backward.register_fake
def _(
    grad_TO: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    in_features: int,
    quant_type: str,
    blocksize: int,
) -> Tensor:
    return grad_TO.new_empty(*grad_TO.shape[:-1], in_features)


def _save_4bit(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x_TI, packed, absmax, nested_absmax, nested_offset, _, _, quant_type, blocksize, _ = inputs
    ctx.save_for_backward(packed, absmax, nested_absmax, nested_offset)
    ctx.rest = (x_TI.shape[-1], quant_type, blocksize)


def _backward_4bit(ctx: Any, grad_TO: Tensor) -> tuple:
    wants_x, wants_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[5]
    grad_x = linear_4bit_backward(grad_TO.contiguous(), *ctx.saved_tensors, *ctx.rest) if wants_x else None
    return grad_x, None, None, None, None, _bias_grad(grad_TO) if wants_bias else None, None, None, None, None


linear_4bit_op.register_autograd(_backward_4bit, setup_context=_save_4bit)


def _bias_grad(grad_TO: Tensor) -> Tensor:
    return grad_TO.flatten(0, -2).sum(0)


def _weight_4bit(
    like: Tensor, packed: Tensor, scales: nf4.Scales, shape: tuple[int, int], quant_type: str, blocksize: int
) -> Tensor:
    """Dequantise the whole weight into the buffer, in the type of `like`."""
    if packed.is_cuda:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(packed, _bitsandbytes_state(scales, shape, like.dtype, quant_type, blocksize))
    num_blocks, num_weights = len(scales.absmax), shape[0] * shape[1]
    packed = packed.view(-1)
    missing = num_blocks * (blocksize // 2) - len(packed)
    if missing:
        packed = F.pad(packed, (0, missing))
    weight = _buffer(num_blocks * blocksize, like)
    nf4.dequantize_into(weight.view(-1, blocksize), packed.view(-1, blocksize // 2), scales, quant_type)
    return weight[:num_weights].view(shape)


def _bitsandbytes_state(scales: nf4.Scales, shape: tuple[int, int], dtype: torch.dtype, quant_type: str, blocksize: int) -> Any:
    """Describe a weight to bitsandbytes' kernels."""
    from bitsandbytes.functional import QuantState

    device, nested = scales.absmax.device, None
    if scales.nested_absmax is not None:
        nested = QuantState(
            absmax=scales.nested_absmax, code=nf4.dynamic_map().to(device), blocksize=nf4.NESTED_BLOCKSIZE, dtype=torch.float32
        )
    return QuantState(
        absmax=scales.absmax,
        shape=torch.Size(shape),
        code=nf4.code_table(quant_type).to(device),
        blocksize=blocksize,
        quant_type=quant_type,
        dtype=dtype,
        offset=scales.nested_offset,
        state2=nested,
    )


# --- 8 bits ----------------------------------------------------------------------------------------------------------


def quantize_8bit(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row to whole numbers from -127 to 127; returns int8 (O, I) and the rows' absmax, float32 (O,).

    Through float16, as bitsandbytes does.

    Raises: ModelError if a weight is not finite.
    Source: Dettmers et al. 2022, arXiv:2208.07339.
    """
    half = weight_OI.to(torch.float16)
    absmax_O = half.abs().amax(1).float()
    if not bool(absmax_O.isfinite().all()):
        raise ModelError("E-MODEL-68", "a weight is infinite, NaN or above 65,504", fix="Download the model again")
    factor_O = torch.where(absmax_O > 0, 127.0 / absmax_O, 0.0)
    return (half * factor_O[:, None]).round().to(torch.int8), absmax_O


def dequantize_8bit(weight_OI: Tensor, absmax_O: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight in memory of its own: `int8 * (absmax / 127)`, rounded once."""
    return (weight_OI * (absmax_O * (1.0 / 127.0))[:, None]).to(dtype)


@compiled
def _dequantize_8bit_into(out: Tensor, weight_OI: Tensor, absmax_O: Tensor) -> None:
    out.copy_(weight_OI * (absmax_O * (1.0 / 127.0))[:, None])


def _weight_8bit(like: Tensor, weight_OI: Tensor, absmax_O: Tensor) -> Tensor:
    if weight_OI.is_cuda:
        return dequantize_8bit(weight_OI, absmax_O, like.dtype)
    out = _buffer(weight_OI.numel(), like).view(weight_OI.shape)
    _dequantize_8bit_into(out, weight_OI, absmax_O)
    return out


@torch.library.custom_op("lorakeet::linear_8bit", mutates_args=())
def linear_8bit(x_TI: Tensor, weight_OI: Tensor, absmax_O: Tensor, bias_O: Tensor | None) -> Tensor:
    """Compute `x Wᵀ + bias` over an int8 weight; the gradient flows to x and bias alone."""
    return F.linear(x_TI, _weight_8bit(x_TI, weight_OI, absmax_O), bias_O)


@linear_8bit.register_fake
def _(x_TI: Tensor, weight_OI: Tensor, absmax_O: Tensor, bias_O: Tensor | None) -> Tensor:
    return x_TI.new_empty(*x_TI.shape[:-1], weight_OI.shape[0])


@torch.library.custom_op("lorakeet::linear_8bit_backward", mutates_args=())
def linear_8bit_backward(grad_TO: Tensor, weight_OI: Tensor, absmax_O: Tensor) -> Tensor:
    return grad_TO @ _weight_8bit(grad_TO, weight_OI, absmax_O)


@linear_8bit_backward.register_fake
def _(grad_TO: Tensor, weight_OI: Tensor, absmax_O: Tensor) -> Tensor:
    return grad_TO.new_empty(*grad_TO.shape[:-1], weight_OI.shape[1])


def _save_8bit(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])


def _backward_8bit(ctx: Any, grad_TO: Tensor) -> tuple:
    wants_x, wants_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
    grad_x = linear_8bit_backward(grad_TO.contiguous(), *ctx.saved_tensors) if wants_x else None
    return grad_x, None, None, _bias_grad(grad_TO) if wants_bias else None


linear_8bit.register_autograd(_backward_8bit, setup_context=_save_8bit)
