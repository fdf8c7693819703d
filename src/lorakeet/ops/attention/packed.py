"""Causal attention over documents of different lengths that lie end to end in one token stream.

data in: queries, keys and values of T tokens, document boundaries → out: one vector per token and query head.
A token sees itself and earlier tokens of its own document, at most `window` of them; never another document.
There is no padding and no mask over the stream: each document is a matrix product of its own.

Documents that begin alike may share that beginning: the stream is then cut into segments, and a segment may continue
another one (`parents`). Its tokens see the whole chain of segments before them, as if they were one document, while
the shared tokens are computed once. Forward and backward are those of the separate documents.

`attention` chooses the backend: C++ kernels for bf16 on CPUs that multiply bf16 pairs and for fp32 on those with AVX2,
blocks of products on any other CPU, a flash kernel on CUDA. `attention_reference` is the slow truth that the tests hold
every backend against.

T tokens, H query heads, K key-value heads (H a multiple of K), E head width.
"""

import importlib.util
from functools import cache

import torch

from lorakeet.ops.attention import blockwise, native
from lorakeet.ops.attention.segments import read_segments

NO_WINDOW = 1 << 30
"""The window of a model without one: larger than any document."""


def attention(
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int = NO_WINDOW,
    parents: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend within documents, causally; scores are scaled by 1/sqrt(E).

    Args:
        cu_seqlens: where segments begin and end, (num_segments + 1,), from 0 to T, on the CPU for CPU tensors.
        window: how many tokens a token sees, itself included.
        parents: (num_segments + 1,); entry s + 1 is the segment that segment s continues, an earlier one, or -1.
            Entry 0 is not used: it keeps the size above 1, which compiled code takes for a shape of its own.
    Returns: (T, H * E) in the dtype of `q_THE`.
    """
    if q_THE.device.type == "cuda":
        return _attention_cuda(q_THE, k_TKE, v_TKE, cu_seqlens, window)
    if parents is None:
        parents = torch.full_like(cu_seqlens, -1)
    return attention_cpu(q_THE, k_TKE, v_TKE, cu_seqlens, parents, window)[0]


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
    segments = read_segments(cu_seqlens, parents)
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


# --- CPU -------------------------------------------------------------------------------------------------------------
#
# An operator of its own, so that a compiled layer is one graph around it.


@torch.library.custom_op("lorakeet::attention_cpu", mutates_args=())
def attention_cpu(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, cu_seqlens: torch.Tensor, parents: torch.Tensor, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with the best backend; also return what the native one keeps for its backward pass, or nothing."""
    if native.can_attend(q_THE):
        return native.attend(q_THE, k_TKE, v_TKE, cu_seqlens, parents, window)
    out = blockwise.attend(q_THE, k_TKE, v_TKE, cu_seqlens, parents, window)
    return out, q_THE.new_empty(0, 0, dtype=torch.float32)


@torch.library.custom_op("lorakeet::attention_cpu_backward", mutates_args=())
def attention_cpu_backward(
    grad: torch.Tensor,
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    out: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_seqlens: torch.Tensor,
    parents: torch.Tensor,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of queries, keys and values, in their shapes."""
    if native.can_attend(q_THE):
        return native.attend_backward(grad, q_THE, k_TKE, v_TKE, out, lse_HT, cu_seqlens, parents, window)
    return blockwise.attend_backward(grad, q_THE, k_TKE, v_TKE, cu_seqlens, parents, window)


@attention_cpu.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: object, parents: object, window: int) -> object:
    T, H, E = q.shape
    kept = (H, T) if native.can_attend(q) else (0, 0)
    return q.new_empty(T, H * E), q.new_empty(kept, dtype=torch.float32)


@attention_cpu_backward.register_fake
def _(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens: object,
    parents: object,
    window: int,
) -> object:
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    q_THE, k_TKE, v_TKE, cu_seqlens, parents, window = inputs
    ctx.save_for_backward(q_THE, k_TKE, v_TKE, *output, cu_seqlens, parents)
    ctx.window = window  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor, _: torch.Tensor) -> tuple:
    # Detached: output and lse came out of the forward pass, but no gradient goes through them here.
    saved = [tensor.detach() for tensor in ctx.saved_tensors]  # type: ignore[attr-defined]
    return *attention_cpu_backward(grad, *saved, ctx.window), None, None, None  # type: ignore[attr-defined]


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
            q_THE, k_TKE, v_TKE, cu_seqlens, cu_seqlens, longest, longest, window_size=(left, 0), enable_gqa=grouped
        )
    return out.flatten(1)
