"""LoRA over quantised layers: gradients are those over the dequantised base, and merging into 4 bits is refused."""

import copy

import pytest
import torch

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError
from lorakeet.lora.adapter import load_adapter, save_adapter
from lorakeet.lora.inject import inject, lora_layers, merge_and_unload, remove
from lorakeet.quant.layers import Linear4bit, Linear8bit, QuantizedLinear


def quantised_and_plain(kind, dtype):
    """Return two equal layers, quantised and dequantised."""
    torch.manual_seed(0)
    weight = (torch.randn(96, 64) * 0.1).to(dtype)
    layer = kind.quantize(weight)
    plain = torch.nn.Linear(64, 96, bias=False)
    plain.weight = torch.nn.Parameter(layer.dequantized())
    return torch.nn.Sequential(layer), torch.nn.Sequential(plain)


def fill(model):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_A.normal_(0, 0.2, generator=generator)
            layer.lora_B.normal_(0, 0.2, generator=generator)


@pytest.mark.parametrize("kind", [Linear4bit, Linear8bit])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_adapter_gradients_equal_those_over_the_dequantised_base(kind, dtype):
    models = quantised_and_plain(kind, dtype)
    outputs, inputs = [], []
    for model in models:
        inject(model, LoraConfig(r=4, lora_alpha=8, target_modules=["0"]))
        fill(model)
        torch.manual_seed(1)
        x = torch.randn(7, 64).to(dtype).requires_grad_()
        out = model(x)
        out.square().sum().backward()
        outputs.append(out)
        inputs.append(x)
    assert torch.equal(*outputs)
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    ours, theirs = (dict(model.named_parameters()) for model in models)
    for name in ("0.lora_A", "0.lora_B"):
        assert ours[name].grad.any()
        assert torch.equal(ours[name].grad, theirs[name].grad)
    assert all(param.grad is None for name, param in ours.items() if "lora_" not in name)


@pytest.mark.parametrize("kind", [Linear4bit, Linear8bit])
def test_inject_and_remove_bring_back_the_very_layer(kind):
    model, _ = quantised_and_plain(kind, torch.bfloat16)
    before, layer = copy.deepcopy(model.state_dict()), model[0]
    inject(model, LoraConfig(r=4, target_modules="all-linear"))
    fill(model)
    remove(model)
    assert model[0] is layer
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", [Linear4bit, Linear8bit])
def test_merging_into_a_quantised_base_is_refused(kind):
    model, _ = quantised_and_plain(kind, torch.bfloat16)
    inject(model, LoraConfig(r=4, target_modules=["0"]))
    fill(model)
    before = model(torch.ones(1, 64, dtype=torch.bfloat16))
    with pytest.raises(AdapterError, match=r"E-ADPT-70.*16-bit base"):
        merge_and_unload(model)
    with pytest.raises(AdapterError, match="E-ADPT-70"):
        next(lora_layers(model))[1].merge()
    assert torch.equal(model(torch.ones(1, 64, dtype=torch.bfloat16)), before)


def test_an_adapter_goes_from_a_quantised_base_to_the_plain_one(tmp_path):
    quantised, plain = quantised_and_plain(Linear4bit, torch.float32)
    inject(quantised, LoraConfig(r=4, lora_alpha=8, target_modules=["0"]))
    fill(quantised)
    save_adapter(quantised, tmp_path)
    load_adapter(plain, tmp_path)
    x = torch.randn(3, 64)
    assert torch.equal(quantised(x), plain(x))


def test_dropout_acts_on_the_update_alone():
    model, _ = quantised_and_plain(Linear4bit, torch.float32)
    x = torch.randn(3, 64)
    base = model(x)
    inject(model, LoraConfig(r=4, target_modules=["0"], lora_dropout=0.5))
    assert torch.equal(model(x), base)  # B is zero
    fill(model)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    assert isinstance(model[0], QuantizedLinear)
