"""The chunked loss, held against PyTorch's own cross entropy on all logits."""

import pytest
import torch

from lorakeet import loss as module
from lorakeet.loss import cross_entropy_reference, cross_entropy_sum


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(101, 16, generator=generator).to(dtype).requires_grad_()
    return hidden, head, torch.randint(0, 101, (37,), generator=generator)


@pytest.mark.parametrize("chunk", [1 << 24, 101 * 5], ids=["one chunk", "chunks of 5"])
@pytest.mark.parametrize("head_trains", [False, True])
def test_loss_and_gradients_match_the_reference(monkeypatch, chunk, head_trains):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    hidden, head, targets = tensors()
    head.requires_grad_(head_trains)
    wanted = [hidden, head] if head_trains else [hidden]
    ours, truth = cross_entropy_sum(hidden, head, targets), cross_entropy_reference(hidden, head, targets)
    assert ours.item() == pytest.approx(truth.item(), rel=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(ours / 37, wanted), torch.autograd.grad(truth / 37, wanted), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_without_gradient_the_loss_is_the_same():
    hidden, head, targets = tensors()
    with torch.no_grad():
        assert cross_entropy_sum(hidden, head, targets).item() == pytest.approx(
            cross_entropy_reference(hidden, head, targets).item(), rel=1e-6
        )


def test_bfloat16_error_is_no_larger_than_the_references():
    hidden, head, targets = tensors()
    (exact,) = torch.autograd.grad(cross_entropy_reference(hidden, head, targets) / 37, hidden)
    half, half_head, _ = tensors(torch.bfloat16)
    (ours,) = torch.autograd.grad(cross_entropy_sum(half, half_head, targets) / 37, half)
    (theirs,) = torch.autograd.grad(cross_entropy_reference(half, half_head, targets) / 37, half)
    assert (ours - exact).norm() <= (theirs - exact).norm() * 1.1
