"""inject, remove and merge_and_unload: what they change, what they leave, what they refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import lorakeet as lora
from lorakeet.errors import AdapterError, ConfigError
from lorakeet.lora.inject import lora_layers
from lorakeet.quant.layers import Linear4bit as QuantizedLinear4bit

Build = Callable[[], nn.Module]
Fill = Callable[[nn.Module], nn.Module]


def config(**values: Any) -> lora.LoraConfig:
    return lora.LoraConfig(**{"r": 2, "lora_alpha": 4, **values})


def paths(model: nn.Module) -> list[str]:
    return [path for path, _ in lora_layers(model)]


def test_keeps_weights_keys_hooks_and_outputs(toy: Build, ids: Tensor) -> None:
    model = toy()
    expected, keys = model(ids), set(model.state_dict())
    weights = dict(model.named_parameters())
    seen: list[str] = []
    model.get_submodule("model.layers.1.down_proj").register_forward_hook(lambda *_: seen.append("hook"))
    assert lora.inject(model, config()) is model
    assert torch.equal(model(ids), expected)
    assert seen == ["hook"]
    now = dict(model.named_parameters())
    assert all(now[name] is weight for name, weight in weights.items())
    assert {key for key in model.state_dict() if "lora_" not in key} == keys
    assert not any(now[name].requires_grad for name in weights)
    assert all(parameter.requires_grad for name, parameter in now.items() if "lora_" in name)
    assert isinstance(model.get_submodule("model.layers.1.down_proj"), nn.Linear)


def test_adapters_are_drawn_from_the_global_generator_alone(toy: Build) -> None:
    model = toy()
    torch.manual_seed(9)
    lora.inject(model, config())
    torch.manual_seed(9)
    for _, layer in lora_layers(model):
        assert torch.equal(layer.lora_A, nn.init.kaiming_uniform_(torch.empty_like(layer.lora_A), a=5**0.5))
        assert not bool(layer.lora_B.any())


def test_all_linear_leaves_the_head(toy: Build) -> None:
    model = lora.inject(toy(), config())
    assert paths(model) == [f"model.layers.{i}.{name}" for i in range(3) for name in ("qkv_proj", "down_proj")]


def test_the_pretrained_state_loads_after_injection(toy: Build, ids: Tensor) -> None:
    source, model = toy(), lora.inject(toy(), config())
    for parameter in source.parameters():
        parameter.data.mul_(1.5)
    loaded = model.load_state_dict(source.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert torch.equal(model(ids), source(ids))


def test_remove_gives_the_very_layers_and_flags_back(toy: Build, fill: Fill, ids: Tensor) -> None:
    model = toy()
    model.get_submodule("model.norm").requires_grad_(False)
    expected, layers = model(ids), dict(model.named_modules())
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    fill(lora.inject(model, config(modules_to_save=["model.norm"])))
    model.eval()
    assert not torch.equal(model(ids), expected)
    assert lora.remove(model) is model
    assert torch.equal(model(ids), expected)
    assert dict(model.named_modules()) == layers
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_and_unload_keeps_the_outputs(dtype: torch.dtype, toy: Build, fill: Fill, ids: Tensor) -> None:
    model = toy().to(dtype)
    keys = list(model.state_dict())
    fill(lora.inject(model, config(lora_alpha=1, modules_to_save=["lm_head"])))
    expected = model(ids)
    lora.merge_and_unload(model)
    assert list(model.state_dict()) == keys
    assert paths(model) == []
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(model(ids), expected, rtol=tolerance, atol=tolerance)
    with pytest.raises(AdapterError, match="E-ADPT-69"):
        lora.merge_and_unload(model)
    with pytest.raises(AdapterError, match="E-ADPT-69"):
        lora.remove(model)


def test_layers_made_by_hand_become_plain_layers() -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(
            lora.Embedding(6, 4, r=2),
            lora.Linear(4, 8, r=2, fan_in_fan_out=True),
            lora.MergedLinear(8, 4, r=2, enable_lora=[True, False]),
        )
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_()
        return model

    x = torch.arange(6)
    merged = lora.merge_and_unload(build())
    assert [type(layer) for layer in merged] == [nn.Embedding, nn.Linear, nn.Linear]
    torch.testing.assert_close(merged(x), build()(x))
    assert [type(layer) for layer in lora.remove(build())] == [nn.Embedding, nn.Linear, nn.Linear]
    conv = lora.merge_and_unload(lora.Conv2d(2, 4, 3, r=2))
    assert type(conv) is nn.Conv2d


def test_one_module_in_two_places_stays_one_module() -> None:
    model = nn.Module()
    model.first = model.second = nn.Linear(4, 4)
    lora.inject(model, config(target_modules=["first"]))
    assert model.first is model.second
    assert isinstance(model.first, lora.Linear)
    lora.remove(model)
    assert type(model.second) is nn.Linear


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_modules": "qkv_proj"}, ["0.qkv_proj", "1.qkv_proj", "2.qkv_proj"]),
        ({"target_modules": ["layers.1.qkv_proj"]}, ["1.qkv_proj"]),
        ({"target_modules": ["qkv_proj"], "layers_to_transform": 2}, ["2.qkv_proj"]),
        ({"layers_to_transform": [0, 2], "exclude_modules": ["down_proj"]}, ["0.qkv_proj", "2.qkv_proj"]),
        ({"layers_to_transform": [1], "layers_pattern": ["layers"]}, ["1.qkv_proj", "1.down_proj"]),
    ],
)
def test_names_choose_modules(options: dict[str, Any], expected: list[str], toy: Build) -> None:
    model = lora.inject(toy(), config(**options))
    assert [path.removeprefix("model.layers.") for path in paths(model)] == expected


def test_patterns_set_rank_alpha_and_scaling(toy: Build) -> None:
    options = {"rank_pattern": {"layers.1.qkv_proj": 4, "qkv_proj": 8}, "alpha_pattern": {"down_proj": 6}}
    model = lora.inject(toy(), config(**options))
    found = {path[13:]: (layer.r, layer.scaling) for path, layer in lora_layers(model)}
    assert found["0.qkv_proj"] == (8, 0.5)
    assert found["1.qkv_proj"] == (4, 1.0)
    assert found["2.down_proj"] == (2, 3.0)
    scaled = lora.inject(toy(), config(use_rslora=True))
    assert next(lora_layers(scaled))[1].scaling == 4 / 2**0.5


def test_a_printed_model_shows_rank_alpha_and_dropout_of_every_layer(toy: Build) -> None:
    from transformers.pytorch_utils import Conv1D

    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 6),
            "embedding": nn.Embedding(5, 4),
            "conv": nn.Conv2d(4, 6, 3),
            "gpt2": Conv1D(6, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "four_bits": QuantizedLinear4bit.quantize(torch.randn(64, 64)),
        }
    )
    chosen = {"target_modules": list(model), "rank_pattern": {"conv": 4}, "alpha_pattern": {"conv": 3}}
    lora.inject(model, lora.LoraConfig(r=2, lora_alpha=8, **chosen))
    said = {path: layer.extra_repr() for path, layer in lora_layers(model)}
    assert said == {
        "linear": "in_features=4, out_features=6, bias=True, r=2, lora_alpha=8, lora_dropout=0",
        "embedding": "5, 4, r=2, lora_alpha=8, lora_dropout=0",
        "conv": "4, 6, kernel_size=(3, 3), stride=(1, 1), r=4, lora_alpha=3, lora_dropout=0",
        "gpt2": "nf=6, nx=4, r=2, lora_alpha=8, lora_dropout=0",
        "attention": "r=2, lora_alpha=8, lora_dropout=0",
        "attention.out_proj": "in_features=4, out_features=4, bias=True, r=2, lora_alpha=8, lora_dropout=0",
        "four_bits": "in_features=64, out_features=64, bias=False, r=2, lora_alpha=8, lora_dropout=0",
    }
    assert all(text in repr(model) for text in said.values())
    assert "lora_dropout=0.1" in repr(lora.inject(toy(), config(lora_dropout=0.1)))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (lora.Linear(4, 6, r=2, lora_alpha=3, lora_dropout=0.1), "r=2, lora_alpha=3, lora_dropout=0.1"),
        (lora.MergedLinear(4, 6, r=2, enable_lora=[True, False]), "r=2, lora_alpha=1, lora_dropout=0"),
        (lora.Embedding(4, 6, r=2, lora_alpha=0.5), "r=2, lora_alpha=0.5, lora_dropout=0"),
        (lora.Conv1d(4, 6, 3, r=2, lora_alpha=3), "r=2, lora_alpha=3, lora_dropout=0"),
    ],
)
def test_a_layer_made_by_hand_shows_them_too(layer: Any, text: str) -> None:
    assert layer.extra_repr().endswith(f", {text}")
    assert layer.eval().extra_repr().endswith(f", {text}, merged")
    assert lora.Linear(4, 6).extra_repr() == nn.Linear(4, 6).extra_repr()


@pytest.mark.parametrize(("bias", "expected"), [("none", set()), ("all", {"norm", "down"}), ("lora_only", {"down"})])
def test_bias_modes(bias: str, expected: set[str], toy: Build) -> None:
    model = lora.inject(toy(), config(bias=bias))
    trained = {name for name, p in model.named_parameters() if p.requires_grad and name.endswith("bias")}
    assert {"norm" if "norm" in name else "down" for name in trained} == expected
    assert all("down_proj" in name or "norm" in name for name in trained)


def test_a_target_that_matches_nothing_lists_what_would(toy: Build) -> None:
    with pytest.raises(ConfigError) as caught:
        lora.inject(toy(), config(target_modules=["qkv_proj", "q_proj"]))
    message = str(caught.value)
    assert message.startswith("E-CFG-42")
    assert '"q_proj" matches 0 modules; the model has embed_tokens, qkv_proj, down_proj, lm_head' in message


class OwnLinear(nn.Linear):
    """A linear layer with behaviour of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def odd_model() -> nn.Module:
    model = nn.Module()
    model.own = OwnLinear(4, 4)
    model.box = nn.Sequential(nn.Linear(4, 4))
    model.attention = nn.MultiheadAttention(4, 2, kdim=6)
    model.packed = nn.MultiheadAttention(4, 2)
    model.grouped = nn.Conv1d(4, 4, 3, groups=2)
    model.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model.pruned = prune.identity(nn.Linear(4, 4), "weight")
    model.embed, model.lm_head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    model.lm_head.weight = model.embed.weight
    return model


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"target_modules": ["own"]}, "E-CFG-162", "extends Linear"),
        ({"target_modules": ["box"]}, "E-CFG-162", "box is a Sequential"),
        ({"target_modules": ["normed"]}, "E-CFG-162", "extends Linear"),
        ({"target_modules": ["pruned"]}, "E-CFG-162", "computed from other parameters"),
        ({"target_modules": ["attention"]}, "E-CFG-164", "attention.out_proj"),
        ({"target_modules": ["packed"], "lora_dropout": 0.1}, "E-CFG-163", "dropout"),
        ({"target_modules": ["out_proj"], "lora_dropout": 0.1}, "E-CFG-163", "dropout"),
        ({"target_modules": ["grouped"], "r": 3}, "E-CFG-164", "2 groups"),
        ({"target_modules": ["grouped"], "modules_to_save": ["lm_head"]}, "E-CFG-165", "tied to embed.weight"),
        ({"target_modules": ["grouped"], "modules_to_save": ["haed"]}, "E-CFG-42", '"haed" matches 0'),
        ({"target_modules": ["grouped"], "exclude_modules": ["grouped"]}, "E-CFG-42", "matches 0"),
    ],
)
def test_refusals_leave_the_model_as_it_was(options: dict[str, Any], code: str, text: str) -> None:
    model = odd_model()
    before = [*model.modules()]
    with pytest.raises(ConfigError, match=code) as caught:
        lora.inject(model, config(**options))
    assert text in str(caught.value)
    assert [*model.modules()] == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_injecting_twice_is_refused(toy: Build) -> None:
    model = lora.inject(toy(), config())
    with pytest.raises(ConfigError, match="E-CFG-161"):
        lora.inject(model, config())


def test_merging_tied_weights_is_refused() -> None:
    model = lora.inject(odd_model(), config(target_modules=["embed"]))
    with pytest.raises(AdapterError, match=r"E-ADPT-108.*lm_head"):
        lora.merge_and_unload(model)
    assert paths(model) == ["embed"]


def test_grouped_convolutions_run_but_do_not_merge(fill: Fill) -> None:
    model = fill(lora.inject(nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)), config(target_modules=["0"])))
    assert model(torch.randn(1, 4, 9)).shape == (1, 4, 7)
    with pytest.raises(AdapterError, match="E-ADPT-109"):
        lora.merge_and_unload(model)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_adapted_convolutions_pad_and_dilate_as_the_layer_does(mode: str, fill: Fill) -> None:
    conv = nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, padding_mode=mode)
    model = fill(lora.inject(nn.Sequential(conv), config(target_modules=["0"])))
    x = torch.randn(1, 2, 9, 9)
    expected = model(x)
    lora.merge_and_unload(model)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("targets", ["(.+)+#", "q_proj|v_proj", ".*", "model..norm", ""])
def test_regular_expressions_are_refused(targets: str) -> None:
    with pytest.raises(ConfigError, match="E-CFG-43"):
        config(target_modules=targets)
    with pytest.raises(ConfigError, match="E-CFG-43"):
        config(rank_pattern={targets: 2})


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"rank_pattern": {"a": 0}}, 37),
        ({"alpha_pattern": {"a": 0.0}}, 107),
        ({"r": 0}, 37),
        ({"r": 1025}, 37),
        ({"lora_alpha": float("nan")}, 107),
    ],
)
def test_numbers_out_of_range_are_refused(values: dict[str, Any], code: int) -> None:
    with pytest.raises(ConfigError, match=f"E-CFG-{code} "):
        config(**values)
