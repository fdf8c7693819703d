"""PiSSA: PEFT's numbers, and a saved adapter that is right on the original base."""

import copy

import peft
import pytest
import torch

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError, ConfigError
from lorakeet.lora.adapter import load_adapter, save_adapter
from lorakeet.lora.disable import disabled_adapters
from lorakeet.lora.inject import inject, lora_layers, merge_and_unload, remove
from lorakeet.quant.layers import Linear4bit

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
NAMES = ["qkv_proj", "down_proj"]


def config(method="pissa", r=3):
    return LoraConfig(r=r, lora_alpha=6, target_modules=NAMES, init_lora_weights=method, task_type=None)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_start_matches_peft(method, toy, ids):
    model, twin = toy(), toy()
    expected = twin(ids)
    inject(model, config(method))
    settings = peft.LoraConfig(r=3, lora_alpha=6, target_modules=NAMES, init_lora_weights=method)
    theirs = peft.get_peft_model(twin, settings)
    torch.testing.assert_close(model(ids), expected)
    for path in ("model.layers.0.qkv_proj", "model.layers.2.down_proj"):
        mine, other = model.get_submodule(path), theirs.base_model.model.get_submodule(path)
        pairs = (mine.lora_A, mine.lora_B), (other.lora_A["default"].weight, other.lora_B["default"].weight)
        update, other_update = (lora_B @ lora_A for lora_A, lora_B in pairs)
        torch.testing.assert_close(update, other_update)
        torch.testing.assert_close(mine.weight, other.base_layer.weight)


def test_the_fast_start_is_nearly_the_exact_one(toy, ids):
    exact, fast = inject(toy(), config()), inject(toy(), config("pissa_niter_16"))
    torch.testing.assert_close(fast(ids), toy()(ids))
    for (_, best), (_, found) in zip(lora_layers(exact), lora_layers(fast), strict=True):
        assert found.weight.norm() < 1.05 * best.weight.norm()


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_saved_adapter_is_right_on_the_original_base_here_and_in_peft(method, toy, fill, ids, tmp_path):
    model = inject(toy(), config(method))
    torch.testing.assert_close(model(ids), toy()(ids))
    fill(model)
    trained = model(ids)
    assert (trained - toy()(ids)).abs().max() > 0.1
    save_adapter(model, tmp_path)
    ours = toy()
    loaded = load_adapter(ours, tmp_path)
    assert loaded.init_lora_weights is True
    torch.testing.assert_close(ours(ids), trained, rtol=1e-4, atol=1e-5)
    theirs = peft.PeftModel.from_pretrained(toy(), tmp_path)
    torch.testing.assert_close(theirs(ids), trained, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merge_and_unload(model)(ids), trained, rtol=1e-4, atol=1e-5)


def test_an_untrained_adapter_changes_nothing(toy, ids, tmp_path):
    save_adapter(inject(toy(), config()), tmp_path)
    ours = toy()
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(ours(ids), toy()(ids))


def test_an_adapter_loads_back_into_the_model_it_came_from(toy, fill, ids, tmp_path):
    model = fill(inject(toy(), config()))
    trained = model(ids)
    save_adapter(model, tmp_path)
    fresh = inject(toy(), config())
    load_adapter(fresh, tmp_path)
    torch.testing.assert_close(fresh(ids), trained, rtol=1e-4, atol=1e-5)


def test_what_needs_the_original_base_is_refused(toy, ids):
    model = inject(toy(), config())
    with pytest.raises(AdapterError, match="E-ADPT-113"):
        remove(model)
    with pytest.raises(AdapterError, match="E-ADPT-113"), disabled_adapters(model):
        pass
    assert copy.deepcopy(model)(ids).equal(model(ids))


def test_layers_that_cannot_start_so_are_refused_before_anything_changes():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), Linear4bit.quantize(torch.randn(64, 64)))
    first, before = model[0], model[0].weight.clone()
    with pytest.raises(ConfigError, match="E-CFG-172"):
        inject(model, LoraConfig(r=4, target_modules=["0", "1"], init_lora_weights="pissa"))
    assert model[0] is first
    assert torch.equal(model[0].weight, before)
    with pytest.raises(ConfigError, match="E-CFG-172"):
        inject(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(r=8, target_modules=["0"], init_lora_weights="pissa"))
    with pytest.raises(ConfigError, match="pissa_niter_N"):
        LoraConfig(init_lora_weights="corda")
