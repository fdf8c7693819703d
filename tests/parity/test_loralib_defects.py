"""The table of docs/loralib.md: each scenario fails on the installed loralib and holds here.

A scenario is plain code against either library that raises where the library is at fault.
"""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loralib
import pytest
import torch
from safetensors.torch import save
from torch import nn

import lorakeet as lora

SCENARIOS: dict[str, Callable[[Any], None]] = {}
DOCUMENT = Path(__file__).parents[2] / "docs" / "loralib.md"


def scenario(function: Callable[[Any], None]) -> Callable[[Any], None]:
    SCENARIOS[function.__name__] = function
    return function


def trained(layer: nn.Module) -> nn.Module:
    """Fill A and B, as training would."""
    torch.manual_seed(3)
    for name, parameter in layer.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    return layer


@scenario
def eval_returns_the_layer(library: Any) -> None:
    layer = library.Linear(4, 4, r=2)
    assert layer.eval() is layer
    assert layer.train() is layer


@scenario
def layers_pickle(library: Any) -> None:
    layer = library.Linear(4, 4, r=2)
    assert torch.equal(pickle.loads(pickle.dumps(layer)).weight, layer.weight)


@scenario
def merge_cycles_do_not_drift(library: Any) -> None:
    layer = trained(library.Linear(16, 16, r=2, dtype=torch.bfloat16))
    before = layer.weight.detach().clone()
    for _ in range(10):
        layer.eval()
        layer.train()
    assert torch.equal(layer.weight, before)


@scenario
def state_saved_in_eval_mode_never_merges_twice(library: Any) -> None:
    layer, x = trained(library.Linear(4, 4, r=2)), torch.randn(3, 4)
    layer.eval()
    expected = layer(x)
    fresh = library.Linear(4, 4, r=2)
    fresh.load_state_dict(layer.state_dict())
    fresh.eval()
    torch.testing.assert_close(fresh(x), expected)


@scenario
def adapter_loaded_while_merged_leaves_the_weight_alone(library: Any) -> None:
    layer, other = trained(library.Linear(4, 4, r=2)), library.Linear(4, 4, r=2)
    weight = layer.weight.detach().clone()
    layer.eval()
    layer.load_state_dict(library.lora_state_dict(other), strict=False)
    layer.train()
    torch.testing.assert_close(layer.weight.detach(), weight)


@scenario
def conv1d_with_a_kernel_larger_than_one(library: Any) -> None:
    layer, x = trained(library.Conv1d(4, 6, 3, r=2)), torch.randn(2, 4, 9)
    unmerged = layer(x)
    layer.eval()
    torch.testing.assert_close(layer(x), unmerged)


@scenario
def conv3d_with_a_kernel_larger_than_one(library: Any) -> None:
    layer, x = trained(library.Conv3d(4, 6, 3, r=2)), torch.randn(2, 4, 5, 5, 5)
    unmerged = layer(x)
    layer.eval()
    torch.testing.assert_close(layer(x), unmerged)


@scenario
def conv2d_with_a_rectangular_kernel(library: Any) -> None:
    layer, x = trained(library.Conv2d(4, 6, (3, 5), r=2)), torch.randn(2, 4, 9, 9)
    assert layer(x).shape == (2, 6, 7, 5)


@scenario
def dropout_of_convolutions_is_honoured(library: Any) -> None:
    layer, x = trained(library.Conv2d(4, 6, 3, r=2, lora_dropout=0.5)), torch.randn(2, 4, 9, 9)
    assert not torch.equal(layer(x), layer(x))


@scenario
def convolutions_train_and_save_their_bias(library: Any) -> None:
    model = nn.Sequential(library.Conv2d(4, 6, 3, r=2))
    library.mark_only_lora_as_trainable(model, bias="lora_only")
    assert model[0].conv.bias.requires_grad
    assert "0.conv.bias" in library.lora_state_dict(model, bias="lora_only")


@scenario
def convolutions_are_convolutions(library: Any) -> None:
    layer = library.Conv2d(4, 6, 3, r=2)
    assert isinstance(layer, nn.Conv2d)
    assert layer.weight is layer.conv.weight


@scenario
def state_of_a_plain_convolution_loads(library: Any) -> None:
    plain, layer = nn.Conv2d(4, 6, 3), library.Conv2d(4, 6, 3, r=2)
    loaded = layer.load_state_dict(plain.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert torch.equal(layer.conv.weight, plain.weight)


@scenario
def no_enabled_slice_is_a_clear_error(library: Any) -> None:
    with pytest.raises(ValueError, match="enable_lora"):
        library.MergedLinear(4, 6, r=2, enable_lora=[False, False])(torch.randn(1, 4))


@scenario
def slices_of_unequal_size(library: Any) -> None:
    """Grouped-query attention, q of 8 rows, k and v of 2 each: only k is to be adapted."""
    sizes = {"slice_sizes": [8, 2, 2]} if library is lora else {}
    layer = trained(library.MergedLinear(4, 12, r=2, enable_lora=[False, True, False], **sizes))
    x = torch.randn(3, 4)
    change = layer(x) - nn.functional.linear(x, layer.weight, layer.bias)
    assert bool((change[:, 8:10] != 0).all())
    assert not bool(change[:, :8].any())
    assert not bool(change[:, 10:].any())


@scenario
def default_of_enable_lora_is_not_shared(library: Any) -> None:
    layer = library.MergedLinear(4, 4)
    layer.enable_lora[0] = True
    try:
        assert not library.MergedLinear(4, 4).enable_lora[0]
    finally:
        # In loralib this is the default of every later layer.
        layer.enable_lora[0] = False


@scenario
def transposed_weights_save_as_safetensors(library: Any) -> None:
    save(library.Linear(4, 6, r=2, fan_in_fan_out=True).state_dict())


@scenario
def names_decide_nothing_about_what_trains(library: Any) -> None:
    model = nn.Module()
    model.my_lora_layer = library.Linear(4, 4, r=2)
    library.mark_only_lora_as_trainable(model)
    assert not model.my_lora_layer.weight.requires_grad
    assert "my_lora_layer.weight" not in library.lora_state_dict(model)


@scenario
def only_biases_are_biases(library: Any) -> None:
    """T5 calls an embedding relative_attention_bias."""
    model = nn.Module()
    model.relative_attention_bias, model.layer = nn.Embedding(4, 4), library.Linear(4, 4, r=2)
    library.mark_only_lora_as_trainable(model, bias="all")
    assert model.layer.bias.requires_grad
    assert not model.relative_attention_bias.weight.requires_grad


@scenario
def embedding_with_max_norm_merges_to_the_same(library: Any) -> None:
    layer, ids = trained(library.Embedding(6, 4, r=2, max_norm=0.5)), torch.arange(6)
    with torch.no_grad():
        unmerged = layer(ids)
        layer.eval()
        torch.testing.assert_close(layer(ids), unmerged)


@scenario
def float32_adapters_work_on_a_bfloat16_base(library: Any) -> None:
    layer = library.Linear(4, 4, r=2, dtype=torch.bfloat16)
    layer.lora_A.data, layer.lora_B.data = layer.lora_A.data.float(), layer.lora_B.data.float()
    layer(torch.randn(3, 4, dtype=torch.bfloat16)).sum().backward()
    assert layer.lora_B.grad is not None
    assert layer.lora_B.grad.dtype == torch.float32


@scenario
def copies_move_between_types_while_merged(library: Any) -> None:
    layer = trained(library.Linear(4, 4, r=2))
    before = layer.weight.detach().clone()
    layer.eval()
    moved = copy.deepcopy(layer)
    moved.to(torch.bfloat16)
    moved.train()
    assert torch.equal(moved.weight, before.to(torch.bfloat16))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCENARIOS)
def test_fails_on_loralib(name: str) -> None:
    """The defect is real: the installed loralib fails the scenario."""
    with pytest.raises(BaseException):  # noqa: B017 (each fails in its own way)
        SCENARIOS[name](loralib)


@pytest.mark.parametrize("name", SCENARIOS)
def test_holds_here(name: str) -> None:
    SCENARIOS[name](lora)


def test_the_document_lists_exactly_these_defects() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert listed == list(SCENARIOS)
