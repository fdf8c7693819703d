"""The layers against slow truths: the weight written out, one slice at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lorakeet as lora
from lorakeet.errors import ConfigError


def trained(layer: Any) -> Any:
    torch.manual_seed(3)
    for name, parameter in layer.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    return layer


def test_linear_equals_the_weight_written_out() -> None:
    layer, x = trained(lora.Linear(6, 5, r=3, lora_alpha=12)), torch.randn(4, 6)
    expected = F.linear(x, layer.weight + 12 / 3 * layer.lora_B @ layer.lora_A, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer.scaling == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fan", [False, True])
@pytest.mark.parametrize(
    ("pattern", "sizes"),
    [([True, True, True], [8, 2, 2]), ([False, True, True], [8, 2, 2]), ([True, False], [3, 9]), ([True], [12])],
)
def test_merged_linear_equals_one_linear_per_slice(
    pattern: list[bool], sizes: list[int], fan: bool, dtype: torch.dtype
) -> None:
    layer = trained(
        lora.MergedLinear(6, 12, r=2, lora_alpha=4, enable_lora=pattern, slice_sizes=sizes, fan_in_fan_out=fan, dtype=dtype)
    )
    x = torch.randn(4, 6, dtype=dtype)
    weight = layer.weight.T if fan else layer.weight
    parts, a, b = [], 0, 0
    for slice_W, on, size in zip(weight.split(sizes), pattern, sizes, strict=True):
        update = torch.zeros_like(slice_W)
        if on:
            update = 2 * layer.lora_B[b : b + size] @ layer.lora_A[a : a + 2]
            a, b = a + 2, b + size
        parts.append(slice_W + update)
    expected = F.linear(x, torch.cat(parts), layer.bias)
    tolerance = {} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(layer(x), expected, **tolerance)
    layer.eval()
    torch.testing.assert_close(layer(x), expected, **tolerance)


@pytest.mark.parametrize("kernel", [1, 3, (3,)])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv1d_equals_the_kernel_written_out(kernel: Any, groups: int) -> None:
    layer, x = trained(lora.Conv1d(4, 6, kernel, r=2, groups=groups, padding=1)), torch.randn(2, 4, 9)
    size = kernel if isinstance(kernel, int) else kernel[0]
    assert layer.lora_A.shape == (2, 4 * size)
    assert layer.lora_B.shape == (6 // groups, 2)
    update = (layer.lora_B @ layer.lora_A).reshape(6, 4 // groups, size) / 2
    torch.testing.assert_close(layer(x), F.conv1d(x, layer.weight + update, layer.bias, padding=1, groups=groups))


@pytest.mark.parametrize(
    ("kind", "kernel", "x"),
    [
        (lora.Conv2d, (2, 3), torch.randn(2, 4, 7, 8)),
        (lora.Conv2d, [3, 1], torch.randn(2, 4, 7, 8)),
        (lora.Conv3d, 2, torch.randn(2, 4, 5, 5, 5)),
        (lora.Conv3d, (1, 2, 3), torch.randn(2, 4, 5, 5, 5)),
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_any_kernel_merges_to_the_same_outputs(kind: Any, kernel: Any, x: Tensor, groups: int) -> None:
    layer = trained(kind(4, 6, tuple(kernel) if isinstance(kernel, list) else kernel, r=2, groups=groups))
    unmerged, plain = layer(x), layer.conv(x)
    assert not torch.allclose(unmerged, plain)
    layer.eval()
    torch.testing.assert_close(layer(x), unmerged)
    unmerged.sum().backward()
    assert bool(layer.lora_A.grad.any())
    assert bool(layer.lora_B.grad.any())


def test_dropout_acts_on_the_update_only_and_while_training() -> None:
    for layer, x in (
        (lora.Linear(6, 5, r=2, lora_dropout=0.5, merge_weights=False), torch.ones(64, 6)),
        (lora.Conv2d(2, 5, 3, r=2, lora_dropout=0.5, merge_weights=False), torch.ones(64, 2, 5, 5)),
    ):
        base = layer(x)
        assert torch.equal(base, layer(x)), "with B at zero there is nothing for dropout to act on"
        trained(layer)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))
        assert not layer.merged


@pytest.mark.parametrize(
    "build",
    [
        lambda r: lora.Linear(4, 6, r=r),
        lambda r: lora.Embedding(4, 6, r=r),
        lambda r: lora.Conv2d(4, 6, 3, r=r),
        lambda r: lora.MergedLinear(4, 6, r=r, enable_lora=[True, False]),
    ],
)
def test_only_the_weight_is_frozen_and_r_zero_is_plain(build: Callable[[int], nn.Module]) -> None:
    frozen = {name for name, parameter in build(2).named_parameters() if not parameter.requires_grad}
    assert frozen == {"conv.weight"} or frozen == {"weight"}
    assert all(parameter.requires_grad for parameter in build(0).parameters())
    assert not any("lora_" in name for name, _ in build(0).named_parameters())


def test_merging_is_explicit_without_merge_weights() -> None:
    layer, x = trained(lora.Linear(6, 5, r=3, merge_weights=False)), torch.randn(4, 6)
    weight = layer.weight.detach().clone()
    layer.eval()
    assert torch.equal(layer.weight, weight)
    layer.merge()
    layer.merge()
    torch.testing.assert_close(layer.weight, weight + layer.lora_B @ layer.lora_A / 3)
    torch.testing.assert_close(F.linear(x, layer.weight, layer.bias), layer(x))
    layer.unmerge()
    layer.unmerge()
    assert torch.equal(layer.weight, weight)


def test_a_layer_merged_in_inference_mode_trains_on() -> None:
    layer, x = trained(lora.Linear(6, 5, r=3)), torch.randn(4, 6, requires_grad=True)
    with torch.inference_mode():
        layer.eval()
        layer(x)
    layer(x).sum().backward()
    layer.train()
    layer(x).sum().backward()
    assert bool(layer.lora_A.grad.any())


def test_state_of_a_merged_model_loads_into_any_condition() -> None:
    source = nn.Sequential(trained(lora.Linear(4, 4, r=2)), trained(lora.Conv2d(1, 2, 3, r=2)))
    x = torch.randn(3, 4)
    expected, kernel = source[0](x), source[1].weight.detach().clone()
    source.eval()
    for mode in (True, False):
        target = nn.Sequential(lora.Linear(4, 4, r=2), lora.Conv2d(1, 2, 3, r=2)).train(mode)
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close(target[0](x), expected)
        assert target[0].merged is not mode
        target.train()
        assert torch.equal(target[1].weight, kernel)
        torch.testing.assert_close(target[0](x), expected)


def test_transposed_weight_is_drawn_again_with_the_right_fan_in() -> None:
    layer = lora.Linear(400, 3, r=2, fan_in_fan_out=True)
    layer.reset_parameters()
    assert layer.weight.shape == (400, 3)
    assert layer.weight.abs().max() <= 1 / 400**0.5


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (lambda: lora.Linear(4, 4, r=-1), "E-CFG-37"),
        (lambda: lora.MergedLinear(4, 6, r=2), "E-CFG-111"),
        (lambda: lora.MergedLinear(4, 7, r=2, enable_lora=[True, False]), "E-CFG-112"),
        (lambda: lora.MergedLinear(4, 6, r=2, enable_lora=[True, True], slice_sizes=[4, 1]), "E-CFG-112"),
        (lambda: lora.MergedLinear(4, 6, r=2, enable_lora=[]), "E-CFG-112"),
        (lambda: lora.mark_only_lora_as_trainable(lora.Linear(4, 4, r=1), bias="some"), "E-CFG-107"),
        (lambda: lora.lora_state_dict(lora.Linear(4, 4, r=1), bias="some"), "E-CFG-107"),
    ],
)
def test_rejects_arguments_that_cannot_be_meant(build: Callable[[], Any], code: str) -> None:
    with pytest.raises(ConfigError, match=code):
        build()


def test_helpers_serve_layers_of_ones_own() -> None:
    """A layer written on loralib's mix-in, as many projects have."""

    class Own(nn.Module, lora.LoRALayer):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            lora.LoRALayer.__init__(self, r=2, lora_alpha=4, lora_dropout=0.1, merge_weights=False)
            self.weight, self.bias = nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(3))
            self.lora_A, self.lora_B = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(3, 2))

    model = nn.Sequential(Own(), nn.Linear(3, 3))
    lora.mark_only_lora_as_trainable(model, bias="lora_only")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"0.bias", "0.lora_A", "0.lora_B"}
    assert set(lora.lora_state_dict(model, bias="lora_only")) == {"0.bias", "0.lora_A", "0.lora_B"}
