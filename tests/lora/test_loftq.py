"""LoftQ: the start makes up for rounding as an exact decomposition does; a saved adapter is right on both bases."""

import copy
import shutil

import peft
import pytest
import torch
from safetensors.torch import save_file

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError, ConfigError
from lorakeet.lora.adapter import WEIGHTS_FILE, adapter_extra, load_adapter, save_adapter
from lorakeet.lora.inject import inject, lora_layers, merge_and_unload, remove
from lorakeet.lora.starts import loftq
from lorakeet.lora.starts.loftq import BEGINNING_FILE
from lorakeet.quant.layers import Linear4bit, Linear8bit

NAMES = ["0", "2"]


def plain():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(128, 192, bias=False), torch.nn.ReLU(), torch.nn.Linear(192, 64, bias=False))


def quantised(kind=Linear4bit):
    model = plain()
    for name in NAMES:
        model[int(name)] = kind.quantize(model[int(name)].weight.detach())
    return model


def config(**values):
    settings = {"r": 4, "lora_alpha": 12, "target_modules": NAMES, "init_lora_weights": "loftq", "task_type": None}
    return LoraConfig(**(settings | values))


def started(kind=Linear4bit, **values):
    """Return a quantised model whose adapters begin with the rounding error."""
    base = plain()
    return inject(quantised(kind), config(**values), original_weight=lambda path: base.get_submodule(path).weight)


def x():
    return torch.randn(5, 128, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", [Linear4bit, Linear8bit])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_start_is_as_near_to_the_original_as_any_of_its_rank(kind, use_rslora):
    """PEFT's own decomposition is exact; with the scaling taken into account, nothing of that rank comes nearer."""
    from peft.utils.loftq_utils import _low_rank_decomposition

    base, model = plain(), started(kind, use_rslora=use_rslora, r=8)
    for path, layer in lora_layers(model):
        error = base.get_submodule(path).weight - layer.dequantized()
        theirs = _low_rank_decomposition(error, reduced_rank=8)
        best = (error - theirs["L"] @ theirs["R"]).norm()
        assert (error - layer.delta_weight(torch.float32)).norm() <= 1.002 * best < 0.98 * error.norm()
    assert (model(x()) - base(x())).norm() < 0.99 * (quantised(kind)(x()) - base(x())).norm()


def test_the_base_stays_the_quantised_one_that_everybody_has():
    model, untouched = started(), quantised()
    remove(model)
    assert all(torch.equal(tensor, untouched.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "values",
    [{}, {"use_rslora": True}, {"rank_pattern": {"2": 2}, "alpha_pattern": {"0": 5}}],
    ids=["plain", "rslora", "patterns"],
)
def test_a_saved_adapter_is_right_on_the_quantised_and_on_the_original_base(values, tmp_path):
    model = started(**values)
    begun = {path: layer.delta_weight(torch.float32) for path, layer in lora_layers(model)}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_A += 0.2 * torch.randn(layer.lora_A.shape, generator=generator)
            layer.lora_B += 0.2 * torch.randn(layer.lora_B.shape, generator=generator)
    save_adapter(model, tmp_path)
    again = quantised()
    assert load_adapter(again, tmp_path).init_lora_weights is True
    assert torch.equal(again(x()), model(x()))

    original, truth = plain(), plain()
    load_adapter(original, tmp_path)
    with torch.no_grad():
        for path, layer in lora_layers(model):
            truth.get_submodule(path).weight += layer.delta_weight(torch.float32) - begun[path]
    torch.testing.assert_close(original(x()), truth(x()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merge_and_unload(original)(x()), truth(x()), rtol=1e-4, atol=1e-4)


def test_what_has_learned_nothing_changes_nothing_on_the_original_base(tmp_path):
    save_adapter(started(), tmp_path)
    original = plain()
    load_adapter(original, tmp_path)
    torch.testing.assert_close(original(x()), plain()(x()))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_peft_loads_it_as_the_adapter_of_the_quantised_base(tmp_path):
    model = started()
    save_adapter(model, tmp_path)
    base = plain()
    for path, layer in lora_layers(model):
        base.get_submodule(path).weight.data = layer.dequantized()
    theirs = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(theirs(x()), model(x()), rtol=1e-4, atol=1e-5)


def test_other_adapters_write_no_beginnings(tmp_path):
    save_adapter(inject(quantised(), config(init_lora_weights=True)), tmp_path)
    assert not (tmp_path / BEGINNING_FILE).exists()


def test_a_rank_beyond_the_weights_own_begins_with_all_of_the_error():
    base, model = plain(), started(r=100)
    for path, layer in lora_layers(model):
        error = base.get_submodule(path).weight - layer.dequantized()
        left = (error - layer.delta_weight(torch.float32)).norm()
        assert left < (1e-4 if path == "2" else 0.4) * error.norm()  # 64 of 64 directions, 100 of 128


def test_what_cannot_start_so_is_refused_before_anything_changes():
    base = plain()
    model = torch.nn.Sequential(quantised()[0], torch.nn.ReLU(), base[2])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=r"E-CFG-172.*2 is not quantised.*load_in_4bit"):
        inject(model, config(), original_weight=lambda path: base.get_submodule(path).weight)
    with pytest.raises(ConfigError, match=r"E-CFG-172.*DoRA would keep the lengths of the rounded rows"):
        inject(model, config().model_copy(update={"use_dora": True}), original_weight=lambda path: base[int(path)].weight)
    with pytest.raises(ConfigError, match=r"E-CFG-172.*original_weight"):
        inject(quantised(), config())
    assert not list(lora_layers(model))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_beginnings_of_another_adapter_are_never_taken_off(tmp_path, monkeypatch):
    """Saved over an older one, or copied without its file: then it is refused, not silently wrong."""
    save_adapter(started(), tmp_path)
    save_adapter(inject(quantised(), config(init_lora_weights=True)), tmp_path)
    load_adapter(plain(), tmp_path)
    save_adapter(started(), tmp_path)
    (tmp_path / BEGINNING_FILE).rename(tmp_path / "elsewhere")
    load_adapter(quantised(), tmp_path)
    model = plain()
    with pytest.raises(AdapterError, match="E-ADPT-187"):
        load_adapter(model, tmp_path)
    assert not list(lora_layers(model))
    shutil.copy(tmp_path / WEIGHTS_FILE, tmp_path / BEGINNING_FILE)
    with pytest.raises(AdapterError, match="E-ADPT-187"):
        load_adapter(plain(), tmp_path)
    # One that its own adapter names, but of other shapes.
    save_file({"0.lora_A.weight": torch.ones(2, 2)}, tmp_path / BEGINNING_FILE)
    monkeypatch.setattr(loftq, "file_sha256", lambda file: adapter_extra(tmp_path)["loftq_init"])
    with pytest.raises(AdapterError, match="E-ADPT-187"):
        load_adapter(plain(), tmp_path)
