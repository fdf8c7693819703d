"""Four-bit weights in bitsandbytes' layout: NF4 and FP4, in blocks that share one scale, and back to 16 bits.

data in: a weight → out: two weights a byte, the first in the high half, and the largest absolute value of each block
(`absmax`); and the other way round. With double quantisation the scales are 8-bit numbers in blocks of 256. Files and
numbers are those of bitsandbytes to the bit. Knows no modules.

`dequantize_into` is the fast way: a C++ kernel (native/four_bits.cpp) or, where that cannot be had, a compiled function
without a table: sixteen values are chosen among by four bits, which a vector unit does for 16 weights at once, where a
look-up takes one at a time. `dequantize_reference` is the slow truth.

Source: Dettmers et al. 2023, arXiv:2305.14314; reference implementation: bitsandbytes 0.50.
"""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lorakeet.errors import ModelError
from lorakeet.machine.compiling import can_compile, compiled
from lorakeet.quant import four_bits

BLOCKSIZE = 64
NESTED_BLOCKSIZE = 256
"""Scales that share one scale of their own."""

_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
CODES: dict[str, tuple[float, ...]] = {
    # Quantiles of the normal distribution, scaled to [-1, 1].
    "nf4": (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
    # Sign, two bits of exponent, one of mantissa; in the order of the bits, not of the values.
    "fp4": tuple(torch.tensor([*_FP4, *(-value or 0.0 for value in _FP4)]).div(12).tolist()),
}
_PART_WEIGHTS = 1 << 22
_NUM_STEPS = 1 << 16
"""Steps from -1 to 1 in which bitsandbytes looks an 8-bit code up."""


@dataclass(frozen=True)
class Scales:
    """The largest absolute value of each block, as it is stored."""

    absmax: Tensor
    """(num_blocks,), float32; with double quantisation uint8 indices into `dynamic_map()`."""
    nested_absmax: Tensor | None = None
    """(num_blocks / 256,), float32."""
    nested_offset: Tensor | None = None
    """A float32 scalar: the mean, taken off before the scales were quantised."""

    def float(self, first: int = 0, last: int | None = None) -> Tensor:
        """Return the scales of the blocks from `first` to before `last`, of all if left out, in float32."""
        last = len(self.absmax) if last is None else last
        absmax = self.absmax[first:last]
        if self.nested_absmax is None or self.nested_offset is None:
            return absmax
        values = dynamic_map().to(absmax.device)[absmax.int()]
        begin, end = first // NESTED_BLOCKSIZE, -(-last // NESTED_BLOCKSIZE)
        nested = self.nested_absmax[begin:end].repeat_interleave(NESTED_BLOCKSIZE)
        values *= nested[first - begin * NESTED_BLOCKSIZE :][: len(values)]
        # Not compiled: a fused multiply-add would round once where bitsandbytes rounds twice.
        values += self.nested_offset
        return values


@cache
def code_table(quant_type: str) -> Tensor:
    """Return the sixteen values of "nf4" or "fp4", float32."""
    return torch.tensor(CODES[quant_type])


@cache
def dynamic_map() -> Tensor:
    """Return the 256 values of the signed dynamic 8-bit type, ascending: ever finer towards zero.

    Source: Dettmers 2015, arXiv:1511.04561.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        bounds = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = (10 ** (exponent - 6) * ((bounds[:-1] + bounds[1:]) / 2.0)).tolist()
        values += means + [-mean for mean in means]
    return torch.tensor(sorted(values), dtype=torch.float32)


def quantize(
    weight: Tensor, quant_type: str = "nf4", *, blocksize: int = BLOCKSIZE, double_quant: bool = True
) -> tuple[Tensor, Scales]:
    """Quantise a weight of any shape; returns its bytes, ((numel + 1) // 2, 1), and the scales of its blocks.

    Raises: ModelError if a weight is not finite: its whole block would become NaN.
    """
    # A part at a time, so that the float32 copies stay small beside the weight.
    parts = [_quantize_part(part, quant_type, blocksize) for part in weight.reshape(-1).split(_PART_WEIGHTS)]
    packed, absmax = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if not bool(absmax.isfinite().all()):
        raise ModelError("E-MODEL-68", "a weight is infinite or NaN", fix="Download the model again")
    return packed[:, None], _double_quantize(absmax) if double_quant else Scales(absmax)


def _quantize_part(weights: Tensor, quant_type: str, blocksize: int) -> tuple[Tensor, Tensor]:
    """Return the bytes and the blocks' largest absolute values of some weights."""
    absmax, scaled = _scale(weights.float(), blocksize)
    code = code_table(quant_type).to(weights.device)
    order = code.argsort()
    midpoints = (code[order[:-1]] + code[order[1:]]) / 2
    nibbles = torch.bucketize(F.pad(scaled, (0, len(scaled) % 2)), midpoints, out_int32=True)
    if quant_type != "nf4":
        nibbles = order[nibbles]
    nibbles = nibbles.to(torch.uint8)
    return (nibbles[::2] << 4) | nibbles[1::2], absmax


def _scale(flat: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """Return the blocks' largest absolute values, and the weights divided by them."""
    num_full = len(flat) // blocksize * blocksize
    blocks, rest = flat[:num_full].view(-1, blocksize), flat[num_full:]
    absmax = blocks.abs().amax(1)
    # bitsandbytes multiplies by the inverse in whole blocks and divides in the last, short one.
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38))[:, None]).clamp(-1, 1).view(-1)
    if len(rest):
        last = rest.abs().amax().clamp(min=1e-38)
        absmax = torch.cat([absmax, last[None]])
        scaled = torch.cat([scaled, (rest / last).clamp(-1, 1)])
    return absmax, scaled


def _double_quantize(absmax: Tensor) -> Scales:
    """Quantise scales to 8 bits, as bitsandbytes does on a CPU: by a table of 65,536 steps."""
    offset = absmax.mean()
    centred = absmax - offset
    blocks = F.pad(centred, (0, -len(centred) % NESTED_BLOCKSIZE)).view(-1, NESTED_BLOCKSIZE)
    nested_absmax = blocks.abs().amax(1)
    inverse = torch.where(nested_absmax > 0, 1.0 / nested_absmax, 0.0)
    steps = ((blocks * inverse[:, None] + 1) * ((_NUM_STEPS - 1) / 2) + 0.5).int().clamp(0, _NUM_STEPS - 1)
    indices = _nearest_codes().to(absmax.device)[steps.long()]
    # A block without any deviation is filled with zeros, not with the code of zero; its scale is 0 either way.
    indices[nested_absmax == 0] = 0
    return Scales(indices.view(-1)[: len(absmax)].contiguous(), nested_absmax, offset)


@cache
def _nearest_codes() -> Tensor:
    """Return the index of the code nearest to each step from -1 to 1; of two as near, the lower one."""
    values, code = torch.arange(_NUM_STEPS).float() / ((_NUM_STEPS - 1) / 2) - 1, dynamic_map()
    upper = torch.searchsorted(code, values).clamp(1, len(code) - 1)
    is_upper = (code[upper] - values) < (values - code[upper - 1])
    nearest = torch.where(is_upper, upper, upper - 1)
    nearest[values <= code[0]] = 0
    return nearest.to(torch.uint8)


def dequantize_reference(
    packed: Tensor,
    absmax: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    quant_type: str = "nf4",
    blocksize: int = BLOCKSIZE,
) -> Tensor:
    """Compute `code[nibble] * absmax` in float32 and round once, through a table: the slow truth for tests."""
    packed = packed.view(-1)
    nibbles = torch.stack([packed >> 4, packed & 15], 1).view(-1)[: torch.Size(shape).numel()]
    values = code_table(quant_type).to(packed.device)[nibbles.int()]
    return (values * absmax.repeat_interleave(blocksize)[: len(values)]).to(dtype).view(shape)


def dequantize_into(out: Tensor, packed: Tensor, scales: Scales, quant_type: str = "nf4", *, first_block: int = 0) -> None:
    """Write the weights of some blocks of a weight to `out`.

    Args:
        out: (num_blocks, blocksize), contiguous, in the wanted dtype.
        packed: (num_blocks, blocksize / 2), contiguous: the bytes of these blocks.
        scales: those of the whole weight.
        quant_type: "nf4" or "fp4".
        first_block: which of the scales is the first block's.
    """
    num_blocks, blocksize = out.shape
    assert packed.is_contiguous()
    assert out.is_contiguous()
    if four_bits.can_dequantize(out):
        four_bits.dequantize_into(out, packed, code_table(quant_type), first_block, *_for_kernel(scales))
        return
    absmax = scales.float(first_block, first_block + num_blocks)
    if not can_compile():
        out.copy_(dequantize_reference(packed, absmax, out.shape, out.dtype, quant_type, blocksize))
    elif out.dtype == torch.bfloat16:
        _bf16_pairs(packed, absmax, out.view(torch.int32), quant_type)
    else:
        _pairs(packed, absmax, out.unflatten(-1, (-1, 2)), quant_type)


def can_multiply(x_TI: Tensor, blocksize: int) -> bool:
    """Tell whether T is so small that unpacking the weight first would cost more than `multiply_into`."""
    return four_bits.can_multiply(x_TI, blocksize)


def multiply_into(
    out_TO: Tensor, x_TI: Tensor, packed: Tensor, scales: Scales, quant_type: str = "nf4", blocksize: int = BLOCKSIZE
) -> None:
    """Write `x Wᵀ` to `out`, contiguous, without unpacking W.

    The products are those with the dequantised weight, their sums are in float32, in an order of their own.
    """
    assert out_TO.is_contiguous()
    four_bits.multiply_into(out_TO, x_TI, packed, code_table(quant_type), blocksize, *_for_kernel(scales))


def _for_kernel(scales: Scales) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    return scales.absmax.contiguous(), dynamic_map(), scales.nested_absmax, scales.nested_offset


@compiled
def _bf16_pairs(packed: Tensor, absmax: Tensor, out: Tensor, quant_type: str) -> None:
    """Write two weights at once as one 32-bit number: interleaved 16-bit stores would not be vectorised."""
    nibbles, scale = packed.to(torch.int32), absmax[..., None]
    first = _rounded_bits(_choose(nibbles >> 4, quant_type) * scale)
    second = _rounded_bits(_choose(nibbles & 15, quant_type) * scale)
    out.copy_(((first >> 16) & 0xFFFF) | (second & -0x10000))


@compiled
def _pairs(packed: Tensor, absmax: Tensor, out: Tensor, quant_type: str) -> None:
    nibbles, scale = packed.to(torch.int32), absmax[..., None]
    out[..., 0].copy_(_choose(nibbles >> 4, quant_type) * scale)
    out[..., 1].copy_(_choose(nibbles & 15, quant_type) * scale)


def _choose(nibbles: Tensor, quant_type: str) -> Tensor:
    """Look nibbles up by halving the sixteen values, bit by bit."""
    code = CODES[quant_type]
    bit = [(nibbles & (1 << i)) != 0 for i in range(4)]
    eight = [torch.where(bit[0], code[2 * i + 1], code[2 * i]) for i in range(8)]
    four = [torch.where(bit[1], eight[2 * i + 1], eight[2 * i]) for i in range(4)]
    two = [torch.where(bit[2], four[2 * i + 1], four[2 * i]) for i in range(2)]
    return torch.where(bit[3], two[1], two[0]).float()


def _rounded_bits(values: Tensor) -> Tensor:
    """Return float32 numbers' bits with the upper half rounded to bfloat16, to nearest, ties to even."""
    bits = values.view(torch.int32)
    return bits + 0x7FFF + ((bits >> 16) & 1)
