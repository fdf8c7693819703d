"""Attention over packed documents, held against one plain mask over the whole stream."""

from functools import partial

import pytest
import torch

from lorakeet.ops import attention as module
from lorakeet.ops.attention import NO_WINDOW, attention, attention_reference

H, K, E = 6, 2, 8


def random_qkv(num_tokens, dtype=torch.float32, heads=H, kv_heads=K):
    generator = torch.Generator().manual_seed(0)
    shapes = [(num_tokens, n, E) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def boundaries(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def outputs_and_grads(function, qkv, cu_seqlens, window, parents=None):
    out = function(*qkv, cu_seqlens, window, parents)
    grads = torch.autograd.grad((out.float() * torch.arange(out.numel()).view_as(out).sin()).sum(), qkv)
    return [out, *grads]


@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (8, 1)], ids=["grouped", "one-to-one", "multi-query"])
@pytest.mark.parametrize("lengths", [[5, 1, 9], [40], [16, 17, 15, 33]])
@pytest.mark.parametrize("window", [NO_WINDOW, 7, 1])
@pytest.mark.parametrize("query_block", [512, 16], ids=["one block", "blocks"])
@pytest.mark.parametrize("keep", [False, True], ids=["recomputed", "kept"])
def test_attention_matches_reference(monkeypatch, heads, lengths, window, query_block, keep):
    monkeypatch.setattr(module, "QUERY_BLOCK", query_block)
    qkv = random_qkv(sum(lengths), heads=heads[0], kv_heads=heads[1])
    truth = outputs_and_grads(attention_reference, qkv, boundaries(lengths), window)
    num_kept = module.num_probabilities(boundaries(lengths)) if keep else 0
    ours = outputs_and_grads(partial(attention, num_kept=num_kept), qkv, boundaries(lengths), window)
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


TREES = {  # lengths of segments and which earlier one each continues
    "one prefix, three answers": ([17, 5, 9, 1], [-1, 0, 0, 0]),
    "a chain": ([6, 7, 20], [-1, 0, 1]),
    "two trees and a loner": ([9, 4, 8, 3, 12, 5], [-1, 0, 1, 0, -1, 4]),
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("window", [NO_WINDOW, 7])
@pytest.mark.parametrize("query_block", [512, 8], ids=["one block", "blocks"])
@pytest.mark.parametrize("keep", [False, True], ids=["recomputed", "kept"])
def test_shared_beginnings_match_reference(monkeypatch, tree, window, query_block, keep):
    monkeypatch.setattr(module, "QUERY_BLOCK", query_block)
    lengths, continued = TREES[tree]
    parents = torch.tensor([-1, *continued], dtype=torch.int32)
    qkv, borders = random_qkv(sum(lengths)), boundaries(lengths)
    truth = outputs_and_grads(attention_reference, qkv, borders, window, parents)
    num_kept = module.num_probabilities(borders, parents) if keep else 0
    ours = outputs_and_grads(partial(attention, num_kept=num_kept), qkv, borders, window, parents)
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_shared_beginning_gives_what_separate_documents_give():
    lengths, parents = [6, 4, 9], torch.tensor([-1, -1, 0, 0], dtype=torch.int32)
    q, k, v = random_qkv(19)
    shared = attention(q, k, v, boundaries(lengths), NO_WINDOW, parents)
    for first, last in ((6, 10), (10, 19)):
        rows = [*range(6), *range(first, last)]
        alone = attention(q[rows], k[rows], v[rows], boundaries([len(rows)]))
        torch.testing.assert_close(shared[first:last], alone[6:], rtol=1e-6, atol=1e-6)


def test_bfloat16_error_is_no_larger_than_the_references():
    lengths = [30, 50]
    exact = outputs_and_grads(attention_reference, random_qkv(80), boundaries(lengths), NO_WINDOW)
    half = random_qkv(80, torch.bfloat16)
    for mine, theirs, truth in zip(
        outputs_and_grads(attention, half, boundaries(lengths), NO_WINDOW),
        outputs_and_grads(attention_reference, half, boundaries(lengths), NO_WINDOW),
        exact,
        strict=True,
    ):
        assert (mine - truth).norm() <= (theirs - truth).norm() * 1.1


@pytest.mark.parametrize("query_block", [512, 8])
def test_perturbing_one_document_leaves_its_neighbours_bit_equal(monkeypatch, query_block):
    monkeypatch.setattr(module, "QUERY_BLOCK", query_block)
    lengths = [20, 13, 31]
    qkv = random_qkv(64)
    before = outputs_and_grads(attention, qkv, boundaries(lengths), NO_WINDOW)
    with torch.no_grad():
        for x in qkv:
            x[20:33] += 1
    after = outputs_and_grads(attention, qkv, boundaries(lengths), NO_WINDOW)
    for old, new in zip(before, after, strict=True):
        assert not torch.equal(old[20:33], new[20:33])
        assert torch.equal(old[:20], new[:20])
        assert torch.equal(old[33:], new[33:])


def test_memory_kept_for_a_long_document_is_linear(monkeypatch):
    monkeypatch.setattr(module, "QUERY_BLOCK", 16)
    assert module.num_probabilities(boundaries([64])) == 0
    assert module.num_probabilities(boundaries([16] * 4)) == 4 * 16 * 16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [NO_WINDOW, 7])
def test_cuda_attention_matches_reference(window):
    qkv = [x.detach().cuda().bfloat16().requires_grad_() for x in random_qkv(64)]
    cu_seqlens = boundaries([20, 13, 31]).cuda()
    ours = outputs_and_grads(attention, qkv, cu_seqlens, window)
    truth = outputs_and_grads(
        attention_reference, [x.detach().float().requires_grad_() for x in qkv], cu_seqlens, window
    )
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine.float(), theirs, rtol=2e-2, atol=2e-2)
