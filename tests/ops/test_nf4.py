"""Four bits: our quantisation and dequantisation equal bitsandbytes' to the bit."""

import itertools

import pytest
import torch

from lorakeet.errors import ModelError
from lorakeet.ops import nf4

bnb = pytest.importorskip("bitsandbytes.functional")

# Widths that bitsandbytes' vector code reads rightly: multiples of 64, or no multiples of 16. See below.
SHAPES = [(64, 64), (9, 128), (3, 5), (7, 64), (5, 70), (33, 129), (1, 1), (40, 1024), (260, 64)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_weight(shape, dtype, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


@pytest.mark.parametrize(("quant_type", "double"), list(itertools.product(["nf4", "fp4"], [True, False])))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_matches_bitsandbytes(shape, dtype, quant_type, double):
    weight = random_weight(shape, dtype)
    packed, scales = nf4.quantize(weight, quant_type, double_quant=double)
    theirs, state = bnb.quantize_4bit(weight, quant_type=quant_type, compress_statistics=double)
    assert torch.equal(packed, theirs)
    assert torch.equal(scales.absmax, state.absmax)
    assert torch.equal(nf4.code_table(quant_type), state.code)
    if double:
        assert torch.equal(scales.nested_absmax, state.state2.absmax)
        assert torch.equal(scales.nested_offset, state.offset)
        assert torch.equal(nf4.dynamic_map(), state.state2.code)
    expected = bnb.dequantize_4bit(theirs, state)
    assert torch.equal(nf4.dequantize_reference(packed, scales.float(), shape, dtype, quant_type), expected)


@pytest.mark.parametrize("exponent", range(-6, 3))
def test_scales_match_bitsandbytes_at_any_size(exponent):
    absmax = torch.rand(70_000, generator=torch.Generator().manual_seed(exponent + 10)) ** 3 * 10.0**exponent
    scales = nf4._double_quantize(absmax)
    theirs, state = bnb.quantize_blockwise(absmax - absmax.mean(), blocksize=256)
    assert torch.equal(scales.absmax, theirs)
    assert torch.equal(scales.float(), bnb.dequantize_blockwise(theirs, state) + absmax.mean())


@pytest.mark.parametrize("weight", [torch.zeros(8, 64), torch.zeros(3, 5), torch.ones(16, 64), torch.eye(130)])
def test_zeros_and_equal_blocks_match_bitsandbytes(weight):
    for quant_type, double in itertools.product(["nf4", "fp4"], [True, False]):
        packed, scales = nf4.quantize(weight, quant_type, double_quant=double)
        theirs, state = bnb.quantize_4bit(weight, quant_type=quant_type, compress_statistics=double)
        assert torch.equal(packed, theirs)
        assert torch.equal(scales.absmax, state.absmax)
        found = nf4.dequantize_reference(packed, scales.float(), weight.shape, torch.float32, quant_type)
        assert torch.equal(found, bnb.dequantize_4bit(theirs, state))


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_quantize_rejects_what_is_not_finite(bad):
    weight = torch.ones(4, 64)
    weight[2, 3] = bad
    with pytest.raises(ModelError, match="E-MODEL-68"):
        nf4.quantize(weight)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", [64, 128])
def test_fast_dequantize_equals_the_reference(quant_type, dtype, blocksize):
    # Every byte under scales of every size, subnormal results and ties of the rounding among them.
    packed = torch.arange(256, dtype=torch.uint8).repeat(blocksize * 4).view(-1, blocksize // 2)
    generator = torch.Generator().manual_seed(0)
    absmax = torch.rand(len(packed), generator=generator) * 10.0 ** torch.randint(
        -39, 4, (len(packed),), generator=generator
    )
    out = torch.empty(len(packed), blocksize, dtype=dtype)
    nf4.dequantize_into(out, packed, absmax, quant_type)
    expected = nf4.dequantize_reference(packed, absmax, tuple(out.shape), dtype, quant_type, blocksize)
    assert torch.equal(out, expected)


def test_columns_of_a_matrix_dequantize_alone():
    weight = random_weight((24, 256), torch.bfloat16)
    packed, scales = nf4.quantize(weight)
    whole = nf4.dequantize_reference(packed, scales.float(), (24, 256), torch.bfloat16)
    out = torch.empty(24, 2, 64, dtype=torch.bfloat16)
    nf4.dequantize_into(out, packed.view(24, 4, 32)[:, 1:3], scales.float().view(24, 4)[:, 1:3])
    assert torch.equal(out.view(24, 128), whole[:, 64:192])


def test_without_a_compiler_the_numbers_are_the_same(monkeypatch):
    packed, scales = nf4.quantize(random_weight((8, 128), torch.bfloat16))
    monkeypatch.setattr(nf4, "can_compile", lambda: False)
    out = torch.empty(16, 64, dtype=torch.bfloat16)
    nf4.dequantize_into(out, packed.view(16, 32), scales.float())
    assert torch.equal(out.view(8, 128), nf4.dequantize_reference(packed, scales.float(), (8, 128), torch.bfloat16))


def test_widths_that_are_multiples_of_16_only():
    """bitsandbytes' vector code takes such a row's scales from the wrong place; its portable code and ours do not."""
    weight = random_weight((32, 48), torch.float32)
    packed, scales = nf4.quantize(weight, double_quant=False)
    theirs, state = bnb.quantize_4bit(weight, quant_type="nf4")
    assert torch.equal(packed, theirs)
    found = nf4.dequantize_reference(packed, scales.float(), (32, 48), torch.float32)
    assert torch.equal(found.view(24, 64), bnb.dequantize_4bit(theirs, state_of(state, (24, 64))))
    assert (found - weight).abs().max() < 0.02


def state_of(state, shape):
    state.shape = torch.Size(shape)
    return state
