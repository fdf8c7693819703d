"""Causal attention over documents of different lengths that lie end to end in one token stream.

data in: queries, keys and values of T tokens, document boundaries → out: one vector per token and query head.
A token sees itself and earlier tokens of its own document, at most `window` of them; never another document.
There is no padding and no mask over the stream: each document is a matrix product of its own.

Documents that begin alike may share that beginning: the stream is then cut into segments, and a segment may continue
another one (`parents`). Its tokens see the whole chain of segments before them, as if they were one document, while
the shared tokens are computed once. Forward and backward are those of the separate documents.

`attention` chooses the backend. `attention_reference` is the slow truth that the tests hold every backend against.

T tokens, H query heads, K key-value heads (H a multiple of K), E head width.
"""

import importlib.util
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch

from lorakeet.ops.compiling import compiled

QUERY_BLOCK = 512
"""Queries handled at once. A document no longer than this keeps its probabilities for the backward pass; a longer
one computes them again block by block, so that memory grows with its length and not with its square."""

NO_WINDOW = 1 << 30
"""The window of a model without one: larger than any document."""


def attention(
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int = NO_WINDOW,
    parents: torch.Tensor | None = None,
    num_kept: int = 0,
) -> torch.Tensor:
    """Attend within documents, causally; scores are scaled by 1/sqrt(E).

    Args:
        cu_seqlens: where segments begin and end, (num_segments + 1,), from 0 to T, on the CPU for CPU tensors.
        window: how many tokens a token sees, itself included.
        parents: (num_segments + 1,); entry s + 1 is the segment that segment s continues, an earlier one, or -1.
            Entry 0 is not used: it keeps the size above 1, which compiled code takes for a shape of its own.
        num_kept: what `num_probabilities` says, to keep those for the backward pass, or 0 to compute them twice.
    Returns: (T, H * E) in the dtype of `q_THE`.
    """
    if q_THE.device.type == "cuda":
        return _attention_cuda(q_THE, k_TKE, v_TKE, cu_seqlens, window)
    # Head-major, so that every head of a document is one matrix. Compiled code writes it this way at once.
    heads_first = [x.transpose(0, 1).contiguous() for x in (q_THE, k_TKE, v_TKE)]
    return attention_cpu(*heads_first, cu_seqlens, parents, window, num_kept)[0]


def num_probabilities(cu_seqlens: torch.Tensor, parents: torch.Tensor | None = None) -> int:
    """Count, for one head, the probabilities of the segments that are short enough to keep them.

    It is a number of its own because compiled code must know the size of what it keeps before it runs.
    """
    if cu_seqlens.device.type != "cpu":
        return 0
    return sum(segment.num_probabilities for segment in _segments(cu_seqlens, parents) if segment.is_short)


def attention_reference(
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int = NO_WINDOW,
    parents: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute what `attention` computes with one mask over the whole stream: slow, plain, differentiable."""
    T, H, E = q_THE.shape
    segments = _segments(cu_seqlens, parents)
    position_T = torch.cat([torch.arange(s.prefix_length, s.prefix_length + s.length) for s in segments])
    visible_TT = torch.zeros(T, T, dtype=torch.bool)
    for segment in segments:
        for start, end in segment.ranges:
            visible_TT[segment.start : segment.end, start:end] = True
    behind_TT = position_T[:, None] - position_T[None]
    visible_TT &= (behind_TT >= 0) & (behind_TT < window)
    groups = H // k_TKE.shape[1]
    k_THE, v_THE = (x.repeat_interleave(groups, dim=1) for x in (k_TKE, v_TKE))
    scores_HTT = torch.einsum("qhe,khe->hqk", q_THE, k_THE).float() * E**-0.5
    probs_HTT = scores_HTT.masked_fill(~visible_TT.to(q_THE.device), float("-inf")).softmax(-1).to(q_THE.dtype)
    return torch.einsum("hqk,khe->qhe", probs_HTT, v_THE).reshape(T, H * E)


# --- Segments and blocks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Segment:
    """A stretch of the stream, and the stretches before it in its document."""

    ranges: tuple[tuple[int, int], ...]
    """What its tokens may see, as stream indices: the chain it continues, oldest first, then itself."""

    @property
    def start(self) -> int:
        return self.ranges[-1][0]

    @property
    def end(self) -> int:
        return self.ranges[-1][1]

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def prefix_length(self) -> int:
        return sum(end - start for start, end in self.ranges[:-1])

    @property
    def num_probabilities(self) -> int:
        return self.length * (self.prefix_length + self.length)

    @property
    def is_short(self) -> bool:
        """One block, with few enough probabilities to keep them."""
        return self.length <= QUERY_BLOCK and self.num_probabilities <= QUERY_BLOCK**2


@dataclass(frozen=True, slots=True)
class _Block:
    """Some queries of a segment and the keys they may see."""

    queries: slice
    keys: tuple[slice, ...]
    num_keys: int
    first_query: int
    """Position of the first query, counted from the first key."""

    @property
    def num_queries(self) -> int:
        return self.queries.stop - self.queries.start


def _segments(cu_seqlens: torch.Tensor, parents: torch.Tensor | None) -> list[_Segment]:
    ends = cu_seqlens.tolist()
    continued = [-1] * (len(ends) - 1) if parents is None else parents.tolist()[1:]
    chains: list[tuple[tuple[int, int], ...]] = []
    for (start, end), parent in zip(itertools.pairwise(ends), continued, strict=True):
        chains.append((*(chains[parent] if parent >= 0 else ()), (start, end)))
    return [_Segment(chain) for chain in chains if chain[-1][1] > chain[-1][0]]


def _blocks(segment: _Segment, window: int) -> Iterator[_Block]:
    """Cut a segment's queries into blocks."""
    prefix = segment.prefix_length
    for first in range(0, segment.length, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, segment.length)
        first_key, end_key = max(0, prefix + first - window + 1), prefix + last
        keys, passed = [], 0
        for start, end in segment.ranges:
            begin, stop = max(first_key - passed, 0), min(end_key - passed, end - start)
            if begin < stop:
                keys.append(slice(start + begin, start + stop))
            passed += end - start
        queries = slice(segment.start + first, segment.start + last)
        yield _Block(queries, tuple(keys), end_key - first_key, prefix + first - first_key)


def _gather(x_KTE: torch.Tensor, keys: tuple[slice, ...]) -> torch.Tensor:
    """Give the tokens of `keys`, in order; without a copy where they lie together."""
    return x_KTE[:, keys[0]] if len(keys) == 1 else torch.cat([x_KTE[:, part] for part in keys], dim=1)


# --- CPU -------------------------------------------------------------------------------------------------------------


@compiled
def causal_softmax_(probs: torch.Tensor, scores: torch.Tensor, first_query: int, window: int, scale: float) -> None:
    """Write the probabilities of scores (heads, queries, keys); `first_query` is counted from the first key."""
    query = torch.arange(scores.shape[1])[:, None] + first_query
    behind = query - torch.arange(scores.shape[2])[None]
    masked = torch.where((behind >= 0) & (behind < window), scores.float() * scale, float("-inf"))
    weights = torch.exp(masked - masked.amax(-1, keepdim=True))
    probs.copy_(weights / weights.sum(-1, keepdim=True))


@compiled
def softmax_backward(grad: torch.Tensor, probs: torch.Tensor, scale: float) -> torch.Tensor:
    """Turn the gradient of probabilities into that of unscaled scores."""
    grad_f, probs_f = grad.float(), probs.float()
    return ((grad_f - (grad_f * probs_f).sum(-1, keepdim=True)) * probs_f * scale).to(probs.dtype)


def _probabilities(
    q_HTE: torch.Tensor, k_KME: torch.Tensor, block: _Block, window: int, probs: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the probabilities (H, queries, keys) of one block, into `probs` where it is given."""
    H, K, E = q_HTE.shape[0], k_KME.shape[0], q_HTE.shape[2]
    # The query heads that share a key head are stacked into one taller matrix: keys are never copied for them.
    q = q_HTE[:, block.queries].reshape(K, -1, E)
    scores = torch.bmm(q, k_KME.transpose(1, 2)).view(H, block.num_queries, block.num_keys)
    probs = torch.empty_like(scores) if probs is None else probs
    causal_softmax_(probs, scores, block.first_query, window, E**-0.5)
    return probs


@torch.library.custom_op("lorakeet::attention_cpu", mutates_args=())
def attention_cpu(
    q_HTE: torch.Tensor,
    k_KTE: torch.Tensor,
    v_KTE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    parents: torch.Tensor | None,
    window: int,
    num_kept: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend segment by segment; also return the kept probabilities of short segments, laid end to end."""
    H, T, E = q_HTE.shape
    K = k_KTE.shape[0]
    out_THE = q_HTE.new_empty(T, H, E)
    kept, used = q_HTE.new_empty(num_kept * H), 0
    for segment in _segments(cu_seqlens, parents):
        for block in _blocks(segment, window):
            room = None
            if num_kept and segment.is_short:
                shape = H, block.num_queries, block.num_keys
                room = kept[used : used + math.prod(shape)].view(shape)
                used += room.numel()
            probs = _probabilities(q_HTE, _gather(k_KTE, block.keys), block, window, room)
            out = torch.bmm(probs.view(K, -1, block.num_keys), _gather(v_KTE, block.keys))
            out_THE[block.queries].copy_(out.view(H, block.num_queries, E).transpose(0, 1))
    return out_THE.view(T, H * E), kept


@attention_cpu.register_fake
def _(
    q_HTE: torch.Tensor,
    k_KTE: torch.Tensor,
    v_KTE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    parents: torch.Tensor | None,
    window: int,
    num_kept: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    H, T, E = q_HTE.shape
    return q_HTE.new_empty(T, H * E), q_HTE.new_empty(num_kept * H)


@torch.library.custom_op("lorakeet::attention_cpu_backward", mutates_args=())
def attention_cpu_backward(
    grad: torch.Tensor,
    q_HTE: torch.Tensor,
    k_KTE: torch.Tensor,
    v_KTE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    parents: torch.Tensor | None,
    kept: torch.Tensor,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the gradients of queries, keys and values."""
    H, T, E = q_HTE.shape
    K = k_KTE.shape[0]
    grad_THE = grad.view(T, H, E)
    segments = _segments(cu_seqlens, parents)
    # Keys that several blocks see collect their gradient in fp32: many small terms would round away in bf16.
    is_sum = any(len(segment.ranges) > 1 or segment.length > QUERY_BLOCK for segment in segments)
    dq = torch.empty_like(q_HTE)
    dk, dv = (torch.zeros_like(x, dtype=torch.float32) if is_sum else torch.empty_like(x) for x in (k_KTE, v_KTE))
    used = 0
    for segment in segments:
        for block in _blocks(segment, window):
            n, m = block.num_queries, block.num_keys
            keys_KME, values_KME = _gather(k_KTE, block.keys), _gather(v_KTE, block.keys)
            if segment.is_short and kept.numel():
                probs = kept[used : used + H * n * m].view(H, n, m)
                used += H * n * m
            else:
                probs = _probabilities(q_HTE, keys_KME, block, window)
            g = grad_THE[block.queries].transpose(0, 1).reshape(K, -1, E)
            dprobs = torch.bmm(g, values_KME.transpose(1, 2)).view(H, n, m)
            dscores = softmax_backward(dprobs, probs, E**-0.5).view(K, -1, m)
            dq[:, block.queries] = torch.bmm(dscores, keys_KME).view(H, n, E)
            dv_KME = torch.bmm(probs.view(K, -1, m).transpose(1, 2), g)
            dk_KME = torch.bmm(dscores.transpose(1, 2), q_HTE[:, block.queries].reshape(K, -1, E))
            sizes = [part.stop - part.start for part in block.keys]
            for part, dk_part, dv_part in zip(block.keys, dk_KME.split(sizes, 1), dv_KME.split(sizes, 1), strict=True):
                if is_sum:
                    dk[:, part] += dk_part
                    dv[:, part] += dv_part
                else:
                    dk[:, part], dv[:, part] = dk_part, dv_part
    return dq, dk.to(k_KTE.dtype), dv.to(v_KTE.dtype)


@attention_cpu_backward.register_fake
def _(
    grad: torch.Tensor,
    q_HTE: torch.Tensor,
    k_KTE: torch.Tensor,
    v_KTE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    parents: torch.Tensor | None,
    kept: torch.Tensor,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(q_HTE), torch.empty_like(k_KTE), torch.empty_like(v_KTE)


def _save_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    q_HTE, k_KTE, v_KTE, cu_seqlens, parents, window, _ = inputs
    ctx.save_for_backward(q_HTE, k_KTE, v_KTE, cu_seqlens, parents, output[1])
    ctx.window = window  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor, _: torch.Tensor) -> tuple:
    # Detached: the kept probabilities came out of the forward pass, but no gradient goes through them.
    saved = [None if tensor is None else tensor.detach() for tensor in ctx.saved_tensors]  # type: ignore[attr-defined]
    grads = attention_cpu_backward(grad.contiguous(), *saved, ctx.window)  # type: ignore[attr-defined]
    return *grads, None, None, None, None


attention_cpu.register_autograd(_backward, setup_context=_save_for_backward)


# --- CUDA ------------------------------------------------------------------------------------------------------------


@cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _attention_cuda(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, cu_seqlens: torch.Tensor, window: int
) -> torch.Tensor:
    """Call flash-attn where it is installed, else PyTorch's own variable-length kernel; fp32 takes the plain way."""
    if q_THE.dtype == torch.float32:  # no flash kernel computes in fp32
        return attention_reference(q_THE, k_TKE, v_TKE, cu_seqlens, window)
    # The stream's length bounds every document's, and reading the true maximum would wait for the device.
    longest = q_THE.shape[0]
    left = -1 if window >= longest else window - 1
    if _has_flash_attn():
        from flash_attn import flash_attn_varlen_func

        out = flash_attn_varlen_func(
            q_THE, k_TKE, v_TKE, cu_seqlens, cu_seqlens, longest, longest, causal=True, window_size=(left, 0)
        )
    else:
        from torch.nn.attention.varlen import varlen_attn

        grouped = q_THE.shape[1] != k_TKE.shape[1]
        out = varlen_attn(
            q_THE,
            k_TKE,
            v_TKE,
            cu_seqlens,
            cu_seqlens,
            longest,
            longest,
            window_size=(left, 0),
            enable_gqa=grouped,
        )
    return out.flatten(1)
