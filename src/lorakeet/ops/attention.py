"""Causal attention over documents of different lengths that lie end to end in one token stream.

data in: queries, keys and values of T tokens, document boundaries → out: one vector per token and query head.
A token sees itself and earlier tokens of its own document, at most `window` of them; never another document.
There is no padding and no mask over the stream: each document is a matrix product of its own.

`attention` chooses the backend. `attention_reference` is the slow truth that the tests hold every backend against.

T tokens, H query heads, K key-value heads (H a multiple of K), E head width, N tokens of one document.
"""

import importlib.util
import itertools
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
    num_kept: int = 0,
) -> torch.Tensor:
    """Attend within documents, causally; scores are scaled by 1/sqrt(E).

    Args:
        cu_seqlens: where documents begin and end, (num_documents + 1,), from 0 to T, on the CPU for CPU tensors.
        window: how many tokens a token sees, itself included.
        num_kept: what `num_probabilities` says, to keep those for the backward pass, or 0 to compute them twice.
    Returns: (T, H * E) in the dtype of `q_THE`.
    """
    if q_THE.device.type == "cuda":
        return _attention_cuda(q_THE, k_TKE, v_TKE, cu_seqlens, window)
    # Head-major, so that every head of a document is one matrix. Compiled code writes it this way at once.
    heads_first = [x.transpose(0, 1).contiguous() for x in (q_THE, k_TKE, v_TKE)]
    return attention_cpu(*heads_first, cu_seqlens, window, num_kept)[0]


def num_probabilities(cu_seqlens: torch.Tensor) -> int:
    """Count, for one head, the probabilities of the documents that are short enough to keep them.

    It is a number of its own because compiled code must know the size of what it keeps before it runs.
    """
    if cu_seqlens.device.type != "cpu":
        return 0
    return sum((end - start) ** 2 for start, end in _documents(cu_seqlens) if end - start <= QUERY_BLOCK)


def attention_reference(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, cu_seqlens: torch.Tensor, window: int = NO_WINDOW
) -> torch.Tensor:
    """Compute what `attention` computes with one mask over the whole stream: slow, plain, differentiable."""
    T, H, E = q_THE.shape
    index_T = torch.arange(T, device=q_THE.device)
    document_T = torch.bucketize(index_T, cu_seqlens.to(q_THE.device)[1:], right=True)
    behind_TT = index_T[:, None] - index_T[None]
    visible_TT = (document_T[:, None] == document_T[None]) & (behind_TT >= 0) & (behind_TT < window)
    groups = H // k_TKE.shape[1]
    k_THE, v_THE = (x.repeat_interleave(groups, dim=1) for x in (k_TKE, v_TKE))
    scores_HTT = torch.einsum("qhe,khe->hqk", q_THE, k_THE).float() * E**-0.5
    probs_HTT = scores_HTT.masked_fill(~visible_TT, float("-inf")).softmax(-1).to(q_THE.dtype)
    return torch.einsum("hqk,khe->qhe", probs_HTT, v_THE).reshape(T, H * E)


# --- CPU -------------------------------------------------------------------------------------------------------------


@compiled
def causal_softmax(scores: torch.Tensor, first_query: int, first_key: int, window: int, scale: float) -> torch.Tensor:
    """Turn scores (heads, queries, keys) into probabilities; positions are counted within the document."""
    query = torch.arange(scores.shape[1])[:, None] + first_query
    key = torch.arange(scores.shape[2])[None] + first_key
    behind = query - key
    masked = torch.where((behind >= 0) & (behind < window), scores.float() * scale, float("-inf"))
    weights = torch.exp(masked - masked.amax(-1, keepdim=True))
    return (weights / weights.sum(-1, keepdim=True)).to(scores.dtype)


@compiled
def softmax_backward(grad: torch.Tensor, probs: torch.Tensor, scale: float) -> torch.Tensor:
    """Turn the gradient of probabilities into that of unscaled scores."""
    grad_f, probs_f = grad.float(), probs.float()
    return ((grad_f - (grad_f * probs_f).sum(-1, keepdim=True)) * probs_f * scale).to(probs.dtype)


def _documents(cu_seqlens: torch.Tensor) -> list[tuple[int, int]]:
    ends = cu_seqlens.tolist()
    return [(start, end) for start, end in itertools.pairwise(ends) if end > start]


def _blocks(start: int, end: int, window: int) -> list[tuple[int, int, int]]:
    """Cut a document's queries into blocks: (first query, end of queries and keys, first key), as stream indices."""
    firsts = range(start, end, QUERY_BLOCK)
    return [(i, min(i + QUERY_BLOCK, end), max(start, i - window + 1)) for i in firsts]


def _probabilities(q_HTE: torch.Tensor, k_KTE: torch.Tensor, block: tuple[int, int, int], window: int) -> torch.Tensor:
    """Compute the probabilities (H, queries, keys) of one block."""
    first_query, end, first_key = block
    H, K, E = q_HTE.shape[0], k_KTE.shape[0], q_HTE.shape[2]
    # The query heads that share a key head are stacked into one taller matrix: keys are never copied.
    q = q_HTE[:, first_query:end].reshape(K, -1, E)
    scores = torch.bmm(q, k_KTE[:, first_key:end].transpose(1, 2)).view(H, end - first_query, end - first_key)
    return causal_softmax(scores, first_query - first_key, 0, window, E**-0.5)


@torch.library.custom_op("lorakeet::attention_cpu", mutates_args=())
def attention_cpu(
    q_HTE: torch.Tensor, k_KTE: torch.Tensor, v_KTE: torch.Tensor, cu_seqlens: torch.Tensor, window: int, num_kept: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend document by document; also return the kept probabilities of short documents, laid end to end."""
    H, T, E = q_HTE.shape
    K = k_KTE.shape[0]
    out_THE = q_HTE.new_empty(T, H, E)
    kept = q_HTE.new_empty(num_kept * H)
    used = 0
    for start, end in _documents(cu_seqlens):
        for block in _blocks(start, end, window):
            first_query, block_end, first_key = block
            probs = _probabilities(q_HTE, k_KTE, block, window)
            if num_kept and end - start <= QUERY_BLOCK:
                kept[used : used + probs.numel()].view_as(probs).copy_(probs)
                used += probs.numel()
            n = block_end - first_query
            out = torch.bmm(probs.view(K, -1, block_end - first_key), v_KTE[:, first_key:block_end])
            out_THE[first_query:block_end].copy_(out.view(H, n, E).transpose(0, 1))
    return out_THE.view(T, H * E), kept


@attention_cpu.register_fake
def _(
    q_HTE: torch.Tensor, k_KTE: torch.Tensor, v_KTE: torch.Tensor, cu_seqlens: torch.Tensor, window: int, num_kept: int
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
    kept: torch.Tensor,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the gradients of queries, keys and values."""
    H, T, E = q_HTE.shape
    K = k_KTE.shape[0]
    grad_THE = grad.view(T, H, E)
    dq, dk, dv = torch.empty_like(q_HTE), torch.empty_like(k_KTE), torch.empty_like(v_KTE)
    used = 0
    for start, end in _documents(cu_seqlens):
        is_one_block = end - start <= QUERY_BLOCK
        if not is_one_block:  # several blocks add into the same keys
            dk[:, start:end] = 0
            dv[:, start:end] = 0
        for block in _blocks(start, end, window):
            first_query, block_end, first_key = block
            n, m = block_end - first_query, block_end - first_key
            if is_one_block and kept.numel():
                probs = kept[used : used + H * n * m].view(H, n, m)
                used += H * n * m
            else:
                probs = _probabilities(q_HTE, k_KTE, block, window)
            keys = slice(first_key, block_end)
            g = grad_THE[first_query:block_end].transpose(0, 1).reshape(K, -1, E)
            dprobs = torch.bmm(g, v_KTE[:, keys].transpose(1, 2)).view(H, n, m)
            dscores = softmax_backward(dprobs, probs, E**-0.5).view(K, -1, m)
            dq[:, first_query:block_end] = torch.bmm(dscores, k_KTE[:, keys]).view(H, n, E)
            dv_block = torch.bmm(probs.view(K, -1, m).transpose(1, 2), g)
            dk_block = torch.bmm(dscores.transpose(1, 2), q_HTE[:, first_query:block_end].reshape(K, -1, E))
            if is_one_block:
                dk[:, keys], dv[:, keys] = dk_block, dv_block
            else:
                dk[:, keys] += dk_block
                dv[:, keys] += dv_block
    return dq, dk, dv


@attention_cpu_backward.register_fake
def _(
    grad: torch.Tensor,
    q_HTE: torch.Tensor,
    k_KTE: torch.Tensor,
    v_KTE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    kept: torch.Tensor,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(q_HTE), torch.empty_like(k_KTE), torch.empty_like(v_KTE)


def _save_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    q_HTE, k_KTE, v_KTE, cu_seqlens, window, _ = inputs
    ctx.save_for_backward(q_HTE, k_KTE, v_KTE, cu_seqlens, output[1])
    ctx.window = window  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor, _: torch.Tensor) -> tuple:
    # Detached: the kept probabilities came out of the forward pass, but no gradient goes through them.
    saved = [tensor.detach() for tensor in ctx.saved_tensors]  # type: ignore[attr-defined]
    return *attention_cpu_backward(grad.contiguous(), *saved, ctx.window), None, None, None  # type: ignore[attr-defined]


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
