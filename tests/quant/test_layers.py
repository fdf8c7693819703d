"""Quantised layers: forward and gradients are those over the dequantised weight; the state is bitsandbytes'."""

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F

from lorakeet.errors import ModelError
from lorakeet.quant import linear as quantized_linear
from lorakeet.quant.layers import Linear4bit, Linear8bit, num_weights

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(96, 128), (40, 48), (7, 5), (130, 64)]
KINDS = {
    "nf4": lambda weight: Linear4bit.quantize(weight),
    "fp4": lambda weight: Linear4bit.quantize(weight, quant_type="fp4", double_quant=False),
    "int8": lambda weight: Linear8bit.quantize(weight),
}


def make(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 0.05).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_forward_and_gradients_equal_the_dequantised_layers(kind, shape, dtype, bias):
    layer = KINDS[kind](make(shape, dtype))
    weight = layer.dequantized()
    assert weight.dtype == dtype
    theirs = torch.nn.Parameter(make(shape[:1], dtype, 3)) if bias else None
    layer.bias = torch.nn.Parameter(theirs.detach().clone()) if bias else None
    x = make((3, 11, shape[1]), dtype, 1).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    found, expected = layer(x), F.linear(twin, weight, theirs)
    assert torch.equal(found, expected)
    grad = make(found.shape, dtype, 2)
    found.backward(grad)
    expected.backward(grad)
    assert torch.equal(x.grad, twin.grad)
    if bias:
        torch.testing.assert_close(layer.bias.grad, theirs.grad)
    assert layer.weight.grad is None


@pytest.mark.parametrize("rows", [1, 24])
def test_block_by_block_equals_the_whole(monkeypatch, rows):
    monkeypatch.setattr(quantized_linear, "BLOCK_WEIGHTS", 4 * 256)  # four rows at once, the last block short
    layer = Linear4bit.quantize(make((50, 256), torch.bfloat16))
    x = make((rows, 256), torch.bfloat16, 1)
    torch.testing.assert_close(layer(x), F.linear(x, layer.dequantized()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_are_exact_in_training_and_near_in_generation(dtype):
    """Without gradients their product takes a way of its own, and an adapter is added to it in place."""
    layer = Linear4bit.quantize(make((50, 128), dtype))
    x = make((1, 3, 128), dtype, 1)
    expected = F.linear(x, layer.dequantized())
    assert torch.equal(layer(x), expected)
    with torch.no_grad():
        out = layer(x)
        out += 1
    torch.testing.assert_close(out, expected + 1)


def test_layers_share_one_buffer_without_mixing():
    first, second = (Linear4bit.quantize(make((64, 64), torch.bfloat16, seed)) for seed in (1, 2))
    x = make((5, 64), torch.bfloat16, 3).requires_grad_()
    out = second(first(x))
    out.sum().backward()
    twin = x.detach().clone().requires_grad_()
    F.linear(F.linear(twin, first.dequantized()), second.dequantized()).sum().backward()
    assert torch.equal(x.grad, twin.grad)


def test_training_goes_on_after_inference():
    layer = Linear4bit.quantize(make((70, 64), torch.float16))  # a type and size that no other test has used
    x = make((3, 64), torch.float16, 1)
    with torch.inference_mode():
        expected = layer(x)
    assert torch.equal(layer(x.requires_grad_()), expected)


def test_compiled_with_what_is_around_it():
    layer = Linear4bit.quantize(make((64, 64), torch.bfloat16))
    x = make((9, 64), torch.bfloat16, 1)
    run = torch.compile(lambda x: F.silu(layer(x)) * 2, dynamic=True, fullgraph=True)
    torch.testing.assert_close(run(x), F.silu(layer(x)) * 2)


def test_no_16_bit_weight_is_kept_for_the_backward_pass():
    layer = Linear4bit.quantize(make((256, 256), torch.bfloat16))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(make((2, 256), torch.bfloat16, 1).requires_grad_())
    assert saved
    assert max(tensor.nbytes for tensor in saved) <= 256 * 256 // 2


@pytest.mark.parametrize(("quant_type", "double"), [("nf4", True), ("nf4", False), ("fp4", True)])
def test_4bit_state_is_that_of_bitsandbytes(quant_type, double):
    weight = make((64, 128), torch.bfloat16)
    ours = Linear4bit.quantize(weight, quant_type=quant_type, double_quant=double)
    theirs = bnb.nn.Linear4bit(128, 64, bias=False, quant_type=quant_type, compress_statistics=double)
    theirs.weight = bnb.nn.Params4bit(weight, quant_type=quant_type, compress_statistics=double, module=theirs)
    theirs = theirs.to("cpu")
    state, expected = ours.state_dict(), theirs.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        if "bitsandbytes__" in name:
            assert eval(bytes(state[name].tolist())) == eval(bytes(tensor.tolist()))
        else:
            assert torch.equal(state[name], tensor), name
    assert torch.equal(Linear4bit.from_tensors(expected).dequantized(), ours.dequantized())
    x = make((6, 128), torch.bfloat16, 1)
    relative = (ours(x) - theirs(x)).float().norm() / ours(x).float().norm()
    assert relative < 1e-2


def test_8bit_state_and_weight_are_those_of_bitsandbytes():
    weight = make((64, 128), torch.bfloat16)
    ours = Linear8bit.quantize(weight)
    theirs = bnb.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False)
    theirs.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    theirs = theirs.to("cpu")
    assert torch.equal(ours.weight, theirs.weight.data)
    assert torch.equal(ours.SCB, theirs.weight.SCB)
    expected = theirs.weight.data.to(torch.bfloat16).mul_(theirs.weight.SCB.unsqueeze(1).mul(1.0 / 127.0))
    assert torch.equal(ours.dequantized(), expected)
    assert Linear8bit.from_tensors(ours.state_dict(), torch.bfloat16).dequantized().equal(ours.dequantized())


def test_8bit_rows_of_zeros_and_what_is_not_finite():
    weight = make((4, 64), torch.float32)
    weight[1] = 0
    assert not Linear8bit.quantize(weight).dequantized()[1].any()
    with pytest.raises(ModelError, match="E-MODEL-68"):
        Linear8bit.quantize(torch.full((2, 64), 1e6))


def test_casting_a_model_leaves_the_scales_alone():
    layer = Linear4bit.quantize(make((64, 64), torch.float32))
    before = layer.dequantized()
    torch.nn.Sequential(layer, torch.nn.Linear(4, 4)).to(torch.bfloat16)
    assert torch.equal(layer.dequantized(), before)
    assert layer.nested_absmax.dtype == torch.float32


def test_weights_are_counted_unpacked():
    model = torch.nn.Sequential(Linear4bit.quantize(make((64, 128), torch.float32)), torch.nn.Linear(3, 2))
    assert num_weights(model) == 64 * 128 + 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_matches_the_cpu(kind):
    layer = KINDS[kind](make((96, 128), torch.bfloat16))
    x = make((5, 128), torch.bfloat16, 1)
    expected, weight = layer(x), layer.dequantized()
    layer = layer.cuda()
    assert torch.equal(layer.dequantized().cpu(), weight)
    on_device = x.cuda().requires_grad_()
    found = layer(on_device)
    torch.testing.assert_close(found.cpu(), expected, rtol=2e-2, atol=2e-2)
    found.sum().backward()
    torch.testing.assert_close(on_device.grad.cpu(), torch.ones(5, 96).bfloat16() @ weight, rtol=2e-2, atol=2e-2)
