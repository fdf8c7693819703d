"""Four bits: our quantisation and dequantisation equal bitsandbytes' to the bit."""

import itertools

import pytest
import torch

from lorakeet.errors import ModelError
from lorakeet.machine.compiling import can_compile
from lorakeet.quant import four_bits, nf4

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


WAYS = ["kernel", "compiled", "plain"]


@pytest.fixture
def way(request, monkeypatch):
    """Choose among the ways to dequantise, the first of which is the one taken where it can be had."""
    if request.param != "plain" and not can_compile():
        pytest.skip("needs a C++ compiler")
    if request.param == "kernel" and four_bits.load_kernel(four_bits.SOURCE) is None:
        pytest.skip("needs a CPU with AVX2")
    if request.param != "kernel":
        monkeypatch.setattr(nf4.four_bits, "can_dequantize", lambda out: False)
    if request.param == "plain":
        monkeypatch.setattr(nf4, "can_compile", lambda: False)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", [32, 64, 128])
def test_dequantize_equals_the_reference(way, quant_type, dtype, blocksize):
    # Every byte under scales of every size, subnormal results and ties of the rounding among them.
    packed = torch.arange(256, dtype=torch.uint8).repeat(blocksize * 4).view(-1, blocksize // 2)
    generator = torch.Generator().manual_seed(0)
    absmax = torch.rand(len(packed), generator=generator) * 10.0 ** torch.randint(-39, 4, (len(packed),), generator=generator)
    out = torch.empty(len(packed), blocksize, dtype=dtype)
    nf4.dequantize_into(out, packed, nf4.Scales(absmax), quant_type)
    expected = nf4.dequantize_reference(packed, absmax, tuple(out.shape), dtype, quant_type, blocksize)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_some_blocks_dequantize_alone(way, dtype, double):
    """Wherever they begin among the scales, 256 of which share one of their own: as bitsandbytes has them."""
    weight = (random_weight((48, 1024), torch.float32) * torch.logspace(-2, 2, 48)[:, None]).to(dtype)
    packed, scales = nf4.quantize(weight, double_quant=double)
    theirs, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    assert torch.equal(packed, theirs)
    expected = bnb.dequantize_4bit(theirs, state).view(-1, 64)
    for first, last in ((0, 768), (0, 255), (255, 258), (250, 600), (512, 768), (767, 768)):
        out = torch.empty(last - first, 64, dtype=dtype)
        nf4.dequantize_into(out, packed.view(-1, 32)[first:last], scales, first_block=first)
        assert torch.equal(out, expected[first:last])
        assert torch.equal(scales.float(first, last), scales.float()[first:last])


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


@pytest.mark.parametrize(("quant_type", "double"), [("nf4", True), ("nf4", False), ("fp4", True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 1024), (7, 64), (5, 192)])
@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_few_rows_are_multiplied_by_what_would_be_written(num_rows, shape, dtype, quant_type, double):
    if four_bits.load_kernel(four_bits.SOURCE) is None:
        pytest.skip("needs a C++ compiler and AVX2")
    weight = random_weight(shape, dtype)
    packed, scales = nf4.quantize(weight, quant_type, double_quant=double)
    written = nf4.dequantize_reference(packed, scales.float(), shape, dtype, quant_type)
    x = random_weight((num_rows, shape[1]), dtype, seed=1)
    if not nf4.can_multiply(x, nf4.BLOCKSIZE):
        assert dtype == torch.bfloat16, "only a CPU without products in bfloat16 may leave them to the slower way"
        pytest.skip("needs AVX512_BF16")
    found = torch.full((num_rows, shape[0]), torch.nan, dtype=dtype)
    nf4.multiply_into(found, x, packed, scales, quant_type)
    expected = x.double() @ written.double().t()
    rounding = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding * expected.abs().mean().item())


def test_what_the_products_of_few_rows_do_not_take():
    assert not nf4.can_multiply(torch.ones(9, 128), 64), "so many rows are faster the other way"
    assert not nf4.can_multiply(torch.ones(1, 128, dtype=torch.float16), 64)
    assert not nf4.can_multiply(torch.ones(1, 96), 64), "blocks span rows"
