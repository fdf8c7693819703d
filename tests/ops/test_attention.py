"""Attention over packed documents, held against one plain mask over the whole stream."""

from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensorMode

from lorakeet.ops.attention import blockwise as blockwise_attention
from lorakeet.ops.attention import cuda
from lorakeet.ops.attention.cached import cached_attention
from lorakeet.ops.attention.native import can_attend
from lorakeet.ops.attention.packed import attention
from lorakeet.ops.attention.reference import attention_reference, cached_attention_reference
from lorakeet.ops.attention.segments import NO_WINDOW, Scoring

H, K, E = 6, 2, 8


def random_qkv(num_tokens, dtype=torch.float32, heads=H, kv_heads=K, width=E):
    generator = torch.Generator().manual_seed(0)
    shapes = [(num_tokens, n, width) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def boundaries(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def outputs_and_grads(function, qkv, cu_seqlens, window, parents=None):
    out = function(*qkv, cu_seqlens, window, parents)
    grads = torch.autograd.grad((out.float() * torch.arange(out.numel(), device=out.device).view_as(out).sin()).sum(), qkv)
    return [out, *grads]


@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (8, 1)], ids=["grouped", "one-to-one", "multi-query"])
@pytest.mark.parametrize("lengths", [[5, 1, 9], [40], [16, 17, 15, 33]])
@pytest.mark.parametrize("window", [NO_WINDOW, 7, 1])
@pytest.mark.parametrize("query_block", [512, 16], ids=["one block", "blocks"])
def test_attention_matches_reference(monkeypatch, heads, lengths, window, query_block):
    monkeypatch.setattr(blockwise_attention, "QUERY_BLOCK", query_block)
    qkv = random_qkv(sum(lengths), heads=heads[0], kv_heads=heads[1])
    truth = outputs_and_grads(attention_reference, qkv, boundaries(lengths), window)
    ours = outputs_and_grads(attention, qkv, boundaries(lengths), window)
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [8, 32], ids=["in blocks", "in the kernel, if there is one"])
@pytest.mark.parametrize(("scale", "softcap"), [(0.3, None), (None, 2.0), (0.3, 2.0)])
@pytest.mark.parametrize("window", [NO_WINDOW, 7])
def test_scales_and_soft_caps_match_reference(width, scale, softcap, window):
    qkv, borders, parents = random_qkv(46, width=width), boundaries([17, 9, 20]), torch.tensor([-1, -1, 0, -1])
    truth = outputs_and_grads(partial(attention_reference, scoring=Scoring(scale, softcap)), qkv, borders, window, parents)
    ours = outputs_and_grads(partial(attention, scale=scale, softcap=softcap), qkv, borders, window, parents)
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    plain = attention(*qkv, borders, window, parents)
    assert not torch.allclose(plain, ours[0], rtol=1e-3, atol=1e-3)


TREES = {  # lengths of segments and which earlier one each continues
    "one prefix, three answers": ([17, 5, 9, 1], [-1, 0, 0, 0]),
    "a chain": ([6, 7, 20], [-1, 0, 1]),
    "two trees and a loner": ([9, 4, 8, 3, 12, 5], [-1, 0, 1, 0, -1, 4]),
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("window", [NO_WINDOW, 7])
@pytest.mark.parametrize("query_block", [512, 8], ids=["one block", "blocks"])
def test_shared_beginnings_match_reference(monkeypatch, tree, window, query_block):
    monkeypatch.setattr(blockwise_attention, "QUERY_BLOCK", query_block)
    lengths, continued = TREES[tree]
    parents = torch.tensor([-1, *continued], dtype=torch.int32)
    qkv, borders = random_qkv(sum(lengths)), boundaries(lengths)
    truth = outputs_and_grads(attention_reference, qkv, borders, window, parents)
    ours = outputs_and_grads(attention, qkv, borders, window, parents)
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


def errors(ours, truth):
    return [(mine.float() - exact.float()).norm() for mine, exact in zip(ours, truth, strict=True)]


def assert_no_worse_in_bfloat16(qkv, cu_seqlens, window=NO_WINDOW, parents=None):
    """Hold a backend's rounding against that of the reference, both measured from float32."""
    wide = [x.detach().float().requires_grad_() for x in qkv]
    exact = outputs_and_grads(attention_reference, wide, cu_seqlens, window, parents)
    ours = errors(outputs_and_grads(attention, qkv, cu_seqlens, window, parents), exact)
    theirs = errors(outputs_and_grads(attention_reference, qkv, cu_seqlens, window, parents), exact)
    for mine, reference, truth in zip(ours, theirs, exact, strict=True):
        # A window of one token leaves queries and keys no gradient; there only rounding is left to compare with.
        assert mine <= reference * 1.1 + 1e-3 * max(truth.norm(), 1.0)


def test_bfloat16_error_is_no_larger_than_the_references():
    assert_no_worse_in_bfloat16(random_qkv(80, torch.bfloat16), boundaries([30, 50]))


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def native_qkv(request):
    """Return queries, keys and values that a native kernel takes."""

    def build(num_tokens, heads, width):
        qkv = random_qkv(num_tokens, request.param, *heads, width)
        if not can_attend(qkv[0]):
            pytest.skip("this CPU has no AVX512_BF16, or no AVX2, or there is no compiler")
        return qkv

    return build


def assert_exact(qkv, cu_seqlens, window, parents=None):
    """Hold a native kernel against the reference: in float32 closely, in bfloat16 by what rounding leaves."""
    if qkv[0].dtype == torch.bfloat16:
        assert_no_worse_in_bfloat16(qkv, cu_seqlens, window, parents)
        return
    truth = outputs_and_grads(attention_reference, qkv, cu_seqlens, window, parents)
    ours = outputs_and_grads(attention, qkv, cu_seqlens, window, parents)
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("heads", "width"), [((9, 3), 64), ((4, 4), 96), ((8, 1), 128), ((2, 2), 32)])
@pytest.mark.parametrize("lengths", [[190, 1, 64], [65, 63, 130], [17]])
@pytest.mark.parametrize("window", [NO_WINDOW, 70, 7, 1])
def test_native_attention_is_no_less_exact_than_the_reference(native_qkv, heads, width, lengths, window):
    assert_exact(native_qkv(sum(lengths), heads, width), boundaries(lengths), window)


@pytest.mark.parametrize("lengths", [[17, 5, 9, 1], [70, 64, 129, 3]])
@pytest.mark.parametrize("continued", [[-1, 0, 0, 0], [-1, 0, 1, -1], [-1, 0, 1, 0]])
@pytest.mark.parametrize("window", [NO_WINDOW, 70])
def test_native_attention_over_shared_beginnings(native_qkv, lengths, continued, window):
    parents = torch.tensor([-1, *continued], dtype=torch.int32)
    assert_exact(native_qkv(sum(lengths), (6, 2), 64), boundaries(lengths), window, parents)


def test_native_attention_takes_scores_of_any_size(native_qkv):
    """The largest weights are 1, the smallest vanish; nothing overflows on the way."""
    q, k, v = native_qkv(150, (4, 2), 64)
    with torch.no_grad():
        q *= 30
        q[::7] *= 1e4
    cu_seqlens = boundaries([100, 50])
    ours = attention(q, k, v, cu_seqlens)
    assert bool(ours.isfinite().all())
    # In bfloat16 the reference would round the scores themselves, by whole units where they are in the hundreds.
    truth = attention_reference(q.float(), k.float(), v.float(), cu_seqlens)
    tolerance = 1e-3 if q.dtype == torch.float32 else 0.02
    torch.testing.assert_close(ours.float(), truth, rtol=tolerance, atol=tolerance)


def test_native_attention_takes_heads_out_of_a_fused_projection(native_qkv):
    q, k, v = native_qkv(70, (4, 4), 64)
    fused = torch.cat([q, k, v], dim=1).detach().requires_grad_()
    cu_seqlens = boundaries([40, 30])
    ours = attention(fused[:, :4], fused[:, 4:8], fused[:, 8:], cu_seqlens)
    assert torch.equal(ours, attention(q, k, v, cu_seqlens))
    ours.float().square().sum().backward()
    apart = torch.autograd.grad(attention(q, k, v, cu_seqlens).float().square().sum(), (q, k, v))
    assert torch.equal(fused.grad, torch.cat(apart, dim=1))


def test_native_attention_never_looks_into_another_document(native_qkv):
    lengths, (q, k, v) = [70, 33, 131], native_qkv(234, (4, 2), 64)
    before = outputs_and_grads(attention, [q, k, v], boundaries(lengths), NO_WINDOW)
    with torch.no_grad():
        for x in (q, k, v):
            x[70:103] += 1
    after = outputs_and_grads(attention, [q, k, v], boundaries(lengths), NO_WINDOW)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:70], new[:70])
        assert torch.equal(old[103:], new[103:])


@pytest.mark.parametrize("query_block", [512, 8])
def test_perturbing_one_document_leaves_its_neighbours_bit_equal(monkeypatch, query_block):
    monkeypatch.setattr(blockwise_attention, "QUERY_BLOCK", query_block)
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


@pytest.mark.parametrize("window", [NO_WINDOW, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4)])
@pytest.mark.parametrize("scoring", [Scoring(), Scoring(0.3, 2.0)])
def test_cached_attention_matches_reference(window, dtype, heads, kv_heads, scoring):
    """First two documents whole, in rows 1 and 2 of the stores; then one more token of each, twice; then 2 and 3 more."""
    lengths = [3, 9]
    stores = [torch.zeros(4, kv_heads, 16, E, dtype=dtype) for _ in range(2)]
    others = [store.clone() for store in stores]
    passes = [([row for row, n in enumerate(lengths, 1) for _ in range(n)], [i for n in lengths for i in range(n)])]
    passes += [([1, 2], [n + more for n in lengths]) for more in range(2)]
    passes += [([1, 1, 2, 2, 2], [5, 6, 11, 12, 13])]
    for step, (rows, columns) in enumerate(passes):
        qkv = [x.detach() + step / 4 for x in random_qkv(len(rows), dtype, heads, kv_heads)]
        first = 0 if window == NO_WINDOW else max(0, min(columns) + 1 - window)
        is_one_each, continues = step in (1, 2), step == 3
        bounds = torch.tensor((1, first, max(columns) + 1) if is_one_each else (0, 0, 0))
        where = torch.tensor(rows), torch.tensor(columns)
        borders = torch.arange(len(rows) + 1) if is_one_each else boundaries([2, 3] if continues else lengths)
        ours = cached_attention(*qkv, *stores, borders, *where, bounds, continues, window, *scoring)
        truth = cached_attention_reference(*qkv, *others, *where, window, scoring)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(ours, truth, rtol=tolerance, atol=tolerance)
        for mine, theirs in zip(stores, others, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("dtype", "shares", "takes_flash"),
    [(torch.bfloat16, False, True), (torch.bfloat16, True, False), (torch.float32, False, False), (torch.float32, True, False)],
)
def test_on_cuda_shared_beginnings_and_fp32_take_the_blocks(monkeypatch, dtype, shares, takes_flash):
    """Neither is dropped, and nothing computes scores of the whole stream."""
    flash = []
    monkeypatch.setattr(cuda, "attend", lambda q, *_: flash.append(q) or q.flatten(1))
    with FakeTensorMode(), torch.device("cuda"):
        q, k, v = (torch.empty(20, heads, E, dtype=dtype) for heads in (H, K, K))
        parents = torch.empty(3, dtype=torch.int32) if shares else None
        out = attention(q, k, v, torch.empty(3, dtype=torch.int32), NO_WINDOW, parents)
    assert (out.shape, out.device.type) == ((20, H * E), "cuda")
    assert bool(flash) == takes_flash


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("continued", [None, [-1, 0, 0]])
@pytest.mark.parametrize("window", [NO_WINDOW, 7])
def test_cuda_attention_matches_reference(dtype, continued, window):
    qkv = [x.detach().cuda().to(dtype).requires_grad_() for x in random_qkv(64)]
    cu_seqlens = boundaries([20, 13, 31]).cuda()
    parents = None if continued is None else torch.tensor([-1, *continued], dtype=torch.int32).cuda()
    ours = outputs_and_grads(attention, qkv, cu_seqlens, window, parents)
    wide = [x.detach().float().requires_grad_() for x in qkv]
    truth = outputs_and_grads(attention_reference, wide, cu_seqlens, window, parents)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine.float(), theirs, rtol=tolerance, atol=tolerance)
