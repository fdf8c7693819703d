"""The chunked loss, held against PyTorch's own cross entropy on all logits."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lorakeet.data.pack import NO_TARGET
from lorakeet.lora.layers import Linear
from lorakeet.ops import cross_entropy as module
from lorakeet.ops.cross_entropy import IGNORE_INDEX, cross_entropy_reference, cross_entropy_sum

V = 101


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(V, 16, generator=generator).to(dtype).requires_grad_()
    return hidden, head, torch.randint(0, V, (37,), generator=generator)


def plain(weight):
    return partial(F.linear, weight=weight)


def assert_matches_reference(hidden, head, trained, targets, smoothing=0.0):
    ours = cross_entropy_sum(hidden, head, targets, vocab_size=V, trained=trained, smoothing=smoothing)
    truth = cross_entropy_reference(hidden, head, targets, smoothing)
    assert ours.item() == pytest.approx(truth.item(), rel=1e-6)
    wanted = [tensor for tensor in (hidden, *trained) if tensor.requires_grad]
    for mine, theirs in zip(torch.autograd.grad(ours / 37, wanted), torch.autograd.grad(truth / 37, wanted), strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [1 << 24, V * 5], ids=["one chunk", "chunks of 5"])
@pytest.mark.parametrize("head_trains", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("num_filling", [0, 6])
def test_loss_and_gradients_match_the_reference(monkeypatch, chunk, head_trains, smoothing, num_filling):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    hidden, weight, targets = tensors()
    targets[len(targets) - num_filling :] = NO_TARGET
    weight.requires_grad_(head_trains)
    assert_matches_reference(hidden, plain(weight), [weight] if head_trains else [], targets, smoothing)


@pytest.mark.parametrize("chunk", [1 << 24, V * 5], ids=["one chunk", "chunks of 5"])
@pytest.mark.parametrize("hidden_trains", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_reach_lora_and_bias_of_the_head(monkeypatch, chunk, hidden_trains, bias):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    hidden, _, targets = tensors()
    torch.manual_seed(0)
    head = Linear(16, V, r=4, lora_alpha=8, bias=bias)
    nn.init.normal_(head.lora_B)
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    assert len(trained) == 2 + bias
    assert_matches_reference(hidden.requires_grad_(hidden_trains), head, trained, targets)


def test_no_more_than_a_chunk_of_logits_exists(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", V * 5)
    hidden, weight, targets = tensors()
    sizes, kept = [], []

    def head(rows):
        sizes.append(len(rows))
        return F.linear(rows, weight)

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        cross_entropy_sum(hidden, head, targets, vocab_size=V, trained=[weight]).backward()
    assert sizes == [5] * 7 + [2]
    assert max(kept) == weight.numel()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_gradient_the_loss_is_the_same(smoothing):
    hidden, weight, targets = tensors()
    targets[-2:] = NO_TARGET
    with torch.no_grad():
        ours = cross_entropy_sum(hidden, plain(weight), targets, vocab_size=V, trained=[weight], smoothing=smoothing)
        truth = cross_entropy_reference(hidden, plain(weight), targets, smoothing)
    assert ours.item() == pytest.approx(truth.item(), rel=1e-6)


def test_bfloat16_error_is_no_larger_than_the_references():
    hidden, weight, targets = tensors()
    (exact,) = torch.autograd.grad(cross_entropy_reference(hidden, plain(weight), targets) / 37, hidden)
    half, half_weight, _ = tensors(torch.bfloat16)
    ours = cross_entropy_sum(half, plain(half_weight), targets, vocab_size=V, trained=[half_weight])
    (mine,) = torch.autograd.grad(ours / 37, half)
    (theirs,) = torch.autograd.grad(cross_entropy_reference(half, plain(half_weight), targets) / 37, half)
    assert (mine - exact).norm() <= (theirs - exact).norm() * 1.1


def test_a_packed_rows_mark_is_the_one_that_the_loss_ignores():
    assert NO_TARGET == IGNORE_INDEX
