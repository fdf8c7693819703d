"""The chunked loss, held against PyTorch's own cross entropy on all logits."""

import pytest
import torch

from lorakeet.data.conversation import Example
from lorakeet.data.pack import NO_TARGET, pack
from lorakeet.objectives import sft as module
from lorakeet.objectives.sft import cross_entropy_reference, cross_entropy_sum, embedding_noise


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(101, 16, generator=generator).to(dtype).requires_grad_()
    return hidden, head, torch.randint(0, 101, (37,), generator=generator)


@pytest.mark.parametrize("chunk", [1 << 24, 101 * 5], ids=["one chunk", "chunks of 5"])
@pytest.mark.parametrize("head_trains", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("num_filling", [0, 6])
def test_loss_and_gradients_match_the_reference(monkeypatch, chunk, head_trains, smoothing, num_filling):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    hidden, head, targets = tensors()
    targets[len(targets) - num_filling :] = NO_TARGET
    head.requires_grad_(head_trains)
    wanted = [hidden, head] if head_trains else [hidden]
    ours, truth = (f(hidden, head, targets, smoothing) for f in (cross_entropy_sum, cross_entropy_reference))
    assert ours.item() == pytest.approx(truth.item(), rel=1e-6)
    for mine, theirs in zip(torch.autograd.grad(ours / 37, wanted), torch.autograd.grad(truth / 37, wanted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_gradient_the_loss_is_the_same(smoothing):
    hidden, head, targets = tensors()
    targets[-2:] = NO_TARGET
    with torch.no_grad():
        assert cross_entropy_sum(hidden, head, targets, smoothing).item() == pytest.approx(
            cross_entropy_reference(hidden, head, targets, smoothing).item(), rel=1e-6
        )


def test_the_noise_of_a_document_goes_by_its_own_length_and_by_nothing_else():
    torch.manual_seed(0)
    lengths, width, alpha = (4, 100, 25), 64, 5.0
    batch = pack([Example(list(range(n)), ((1, n),), "") for n in lengths])
    noise = embedding_noise(batch, width, alpha)
    assert noise.shape == (sum(lengths), width)
    for document, length in zip(noise.split(lengths), lengths, strict=True):
        size = alpha / (length * width) ** 0.5
        assert 0.97 * size < document.abs().max() <= size
        assert document.abs().mean().item() == pytest.approx(size / 2, rel=0.1)  # uniform
        assert abs(document.mean().item()) < 0.1 * size


def test_bfloat16_error_is_no_larger_than_the_references():
    hidden, head, targets = tensors()
    (exact,) = torch.autograd.grad(cross_entropy_reference(hidden, head, targets) / 37, hidden)
    half, half_head, _ = tensors(torch.bfloat16)
    (ours,) = torch.autograd.grad(cross_entropy_sum(half, half_head, targets) / 37, half)
    (theirs,) = torch.autograd.grad(cross_entropy_reference(half, half_head, targets) / 37, half)
    assert (ours - exact).norm() <= (theirs - exact).norm() * 1.1
