"""Every layer and argument against the installed loralib, seed for seed."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import loralib
import pytest
import torch
from torch import Tensor, nn

import lorakeet as lora
from lorakeet.lora.layers import LoRALayer

STEPS = 10
# In float32 and float64 both libraries run the same operations in the same order: equal to the bit. Only with
# fan_in_fan_out the same numbers lie in another order in memory (loralib's weight is a transposed view), which may
# pick another kernel. In bfloat16 we round less often, so there the layers agree to a few units in the last place.
TRANSPOSED = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 3e-2}
BFLOAT16 = TRANSPOSED[torch.bfloat16]


class Case:
    """A layer's name, its arguments and the input it takes."""

    def __init__(self, kind: str, args: tuple, kwargs: dict[str, Any], x: Callable[[], Tensor]) -> None:
        self.kind, self.args, self.kwargs, self.x = kind, args, kwargs, x

    def build(self, library: Any) -> nn.Module:
        torch.manual_seed(7)
        return getattr(library, self.kind)(*self.args, **self.kwargs)

    @property
    def tolerance(self) -> float:
        dtype = self.kwargs.get("dtype", torch.float32)
        return TRANSPOSED[dtype] if self.kwargs.get("fan_in_fan_out") or dtype == torch.bfloat16 else 0.0

    def __repr__(self) -> str:
        return f"{self.kind}{self.args} " + ",".join(f"{k}={v}" for k, v in self.kwargs.items())


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def tokens(high: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, high, (3, 5), generator=torch.Generator().manual_seed(3))


def linear_cases() -> list[Case]:
    grid = itertools.product([0, 1, 4], [1, 16], [False, True], [True, False], [True, False])
    cases = [
        Case(
            "Linear",
            (12, 20),
            {"r": r, "lora_alpha": alpha, "fan_in_fan_out": fan, "merge_weights": merge, "bias": bias},
            floats(2, 5, 12),
        )
        for r, alpha, fan, merge, bias in grid
    ]
    for dtype, fan in itertools.product([torch.float64, torch.bfloat16], [False, True]):
        cases.append(Case("Linear", (12, 20), {"r": 4, "fan_in_fan_out": fan, "dtype": dtype}, floats(6, 12, dtype=dtype)))
    return cases


def merged_cases() -> list[Case]:
    patterns = [p for n in (1, 2, 3) for p in itertools.product([True, False], repeat=n) if any(p)]
    cases = [
        Case(
            "MergedLinear",
            (12, 24),
            {"r": r, "lora_alpha": alpha, "enable_lora": list(pattern), "fan_in_fan_out": fan},
            floats(2, 5, 12),
        )
        for pattern, (r, alpha), fan in itertools.product(patterns, [(1, 1), (4, 16)], [False, True])
    ]
    cases += [Case("MergedLinear", (12, 24), {"r": 0, "enable_lora": [False, True]}, floats(5, 12))]
    for dtype in (torch.float64, torch.bfloat16):
        kwargs = {"r": 4, "enable_lora": [True, False, True], "dtype": dtype}
        cases.append(Case("MergedLinear", (12, 24), kwargs, floats(5, 12, dtype=dtype)))
    return cases


def embedding_cases() -> list[Case]:
    grid = itertools.product([0, 2, 4], [1, 8], [True, False], [None, 1], [False, True])
    return [
        Case(
            "Embedding",
            (11, 6),
            {"r": r, "lora_alpha": a, "merge_weights": m, "padding_idx": pad, "scale_grad_by_freq": s},
            tokens(11),
        )
        for r, a, m, pad, s in grid
    ]


def conv_cases() -> list[Case]:
    cases = [
        Case("Conv2d", (4, 8, k), {"r": r, "lora_alpha": alpha, "groups": groups, **extra}, floats(2, 4, 7, 7))
        for k, (r, alpha), groups, extra in itertools.product(
            [1, 2, 3], [(0, 1), (2, 1), (4, 8)], [1, 2, 4], [{}, {"stride": 2, "padding": 1, "bias": False}]
        )
    ]
    # Only kernels of size 1 work in loralib here.
    cases += [Case("Conv1d", (4, 8, 1), {"r": r, "groups": g}, floats(2, 4, 7)) for r in (0, 2) for g in (1, 2)]
    cases += [Case("Conv3d", (4, 8, 1), {"r": r, "groups": g}, floats(2, 4, 3, 3, 3)) for r in (0, 2) for g in (1, 2)]
    cases += [
        Case("Conv2d", (4, 8, 3), {"r": 2, "padding_mode": mode, "padding": 1, "dilation": 2}, floats(2, 4, 7, 7))
        for mode in ("zeros", "reflect", "circular")
    ]
    return cases


CASES = linear_cases() + merged_cases() + embedding_cases() + conv_cases()


def test_the_grid_is_as_large_as_promised() -> None:
    assert len(CASES) >= 150
    assert len({repr(case) for case in CASES}) == len(CASES)


def same(ours: Tensor, theirs: Tensor, tolerance: float = 0.0) -> None:
    """Compare to the bit, or within a tolerance relative to the largest value."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    if tolerance == 0.0:
        assert torch.equal(ours, theirs)
    else:
        scale = theirs.abs().max().item() + 1e-30
        assert (ours - theirs).abs().max().item() <= tolerance * scale


def same_states(ours: nn.Module, theirs: nn.Module) -> None:
    """Compare keys, their order, and the bytes."""
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    for key in mine:
        same(mine[key], other[key])


def same_gradients(ours: nn.Module, theirs: nn.Module, tolerance: float) -> None:
    """Compare which parameters train, and their gradients."""
    pairs = list(zip(ours.named_parameters(), theirs.named_parameters(), strict=True))
    for (name, mine), (their_name, other) in pairs:
        assert name == their_name
        assert mine.requires_grad == other.requires_grad
        assert (mine.grad is None) == (other.grad is None), name
        if mine.grad is not None:
            same(mine.grad, other.grad, tolerance)


def randomize(ours: nn.Module, theirs: nn.Module) -> None:
    """Return the parameter that starts at zero the same random values in both."""
    generator = torch.Generator().manual_seed(11)
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if "lora_" in name and not bool(mine.any()):
            value = torch.randn(mine.shape, generator=generator).to(mine.dtype)
            mine.data.copy_(value)
            other.data.copy_(value)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_matches_loralib(case: Case) -> None:
    """Initialisation, forward, gradients, merged forward, ten steps of training, and states across, both ways."""
    ours, theirs = case.build(lora), case.build(loralib)
    tolerance = case.tolerance
    same_states(ours, theirs)
    randomize(ours, theirs)
    x = case.x()
    target = torch.randn(ours(x).shape, generator=torch.Generator().manual_seed(5)).to(ours(x).dtype)
    optimizers = []
    for model, helpers in ((ours, lora), (theirs, loralib)):
        if case.kwargs["r"] > 0:
            helpers.mark_only_lora_as_trainable(model, bias="none")
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizers.append(torch.optim.AdamW(trainable, lr=1e-3))
    for step in range(STEPS):
        losses = []
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            output = model(x)
            loss = ((output - target) ** 2).mean()
            loss.backward()
            losses.append((output.detach(), loss.detach()))
        same(losses[0][0], losses[1][0], tolerance)
        same(losses[0][1], losses[1][1], tolerance)
        # Adam divides by the gradient's own size, so in bfloat16 the gradients part after the first step.
        if step == 0 or tolerance < BFLOAT16:
            same_gradients(ours, theirs, tolerance)
        for optimizer in optimizers:
            optimizer.step()
    ours.eval(), theirs.eval()
    assert ours.merged == theirs.merged
    same(ours(x), theirs(x), tolerance)
    ours.train(), theirs.train()
    cross_load(case, ours, theirs, x)


def cross_load(case: Case, ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Load each library's state into the other's layer."""
    fresh_ours, fresh_theirs = case.build(lora), case.build(loralib)
    fresh_ours.load_state_dict(theirs.state_dict())
    fresh_theirs.load_state_dict(ours.state_dict())
    same(fresh_ours(x), theirs(x), case.tolerance)
    same(fresh_theirs(x), ours(x), case.tolerance)
    same_states(fresh_ours, theirs)
    same_states(fresh_theirs, ours)


@pytest.mark.parametrize("kind", ["Linear", "MergedLinear"])
def test_dropout_draws_the_same_mask(kind: str) -> None:
    extra = {"enable_lora": [True, False]} if kind == "MergedLinear" else {}
    case = Case(kind, (12, 20), {"r": 4, "lora_dropout": 0.5, **extra}, floats(5, 12))
    ours, theirs = case.build(lora), case.build(loralib)
    randomize(ours, theirs)
    outputs = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        outputs.append(model(case.x()))
    same(*outputs)
    assert not torch.equal(outputs[0], ours(case.x()))


def small_model(library: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        library.Embedding(10, 8, r=2),
        library.Linear(8, 12, r=2),
        library.Linear(12, 12),
        library.MergedLinear(12, 12, r=2, enable_lora=[True, False, True]),
        nn.Linear(12, 4),
        library.Conv2d(1, 2, 3, r=2),
    )


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_helpers_match_loralib(bias: str) -> None:
    ours, theirs = small_model(lora), small_model(loralib)
    lora.mark_only_lora_as_trainable(ours, bias=bias)
    loralib.mark_only_lora_as_trainable(theirs, bias=bias)
    flags = {name: parameter.requires_grad for name, parameter in ours.named_parameters()}
    their_flags = {name: parameter.requires_grad for name, parameter in theirs.named_parameters()}
    saved, their_saved = lora.lora_state_dict(ours, bias=bias), loralib.lora_state_dict(theirs, bias=bias)
    if bias == "lora_only":
        # loralib forgets the bias of convolutions; see docs/loralib.md.
        flags["5.conv.bias"] = False
        del saved["5.conv.bias"]
    assert flags == their_flags
    assert saved.keys() == their_saved.keys()
    assert all(torch.equal(saved[key], their_saved[key]) for key in saved)


def test_two_step_loading_gives_the_trained_model_back() -> None:
    """The README's flow: the pretrained state, then the LoRA state, both with strict=False."""
    trained = small_model(lora)
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    pretrained = {key: value for key, value in trained.state_dict().items() if "lora_" not in key}
    for library in (lora, loralib):
        fresh = small_model(library)
        fresh.load_state_dict(pretrained, strict=False)
        fresh.load_state_dict(lora.lora_state_dict(trained), strict=False)
        x = torch.arange(10)
        same(fresh[:5](x), trained[:5](x))


@pytest.mark.parametrize("kind", ["Linear", "Embedding", "MergedLinear", "ConvLoRA", "LoRALayer"])
def test_signatures_are_loralibs(kind: str) -> None:
    """Names, order and defaults; MergedLinear's slice_sizes comes behind all of them."""
    ours, theirs = (inspect.signature(getattr(library, kind).__init__).parameters for library in (lora, loralib))
    names = [name for name in ours if name != "slice_sizes"]
    assert names == list(theirs)
    for name in names:
        default = ours[name].default
        assert (list(default) if isinstance(default, tuple) else default) == theirs[name].default
        assert ours[name].kind == theirs[name].kind


def test_public_mixin_is_loralibs() -> None:
    layer = lora.Linear(4, 4, r=2)
    assert isinstance(layer, LoRALayer)
    assert isinstance(layer, nn.Linear)
