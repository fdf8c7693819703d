"""Causal attention over documents of different lengths that lie end to end in one token stream.

data in: queries, keys and values of T tokens, document boundaries → out: one vector per token and query head.
A token sees itself and earlier tokens of its own document, at most `window` of them; never another document.
There is no padding and no mask over the stream: each document is a matrix multiplication of its own.

Documents with equal beginnings may share them: the stream is then cut into segments, and a segment may continue
another one (`parents`). Its tokens see the whole chain of segments before them, as if they were one document, while
the shared tokens are computed once. Forward and backward are those of the separate documents.

`attention` chooses the backend: C++ kernels for bf16 on CPUs that multiply bf16 pairs and for fp32 on those with AVX2
(`native.py`), a flash kernel for 16 bits on CUDA (`cuda.py`), blocks of matrix multiplications for everything else
(`blockwise.py`). The slow truth is `reference.py`.

T tokens, H query heads, K key-value heads (H a multiple of K), E head width.
"""

import torch

from lorakeet.ops.attention import blockwise, cuda, native
from lorakeet.ops.attention.segments import NO_WINDOW, Documents, Scoring


def attention(
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int = NO_WINDOW,
    parents: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attend within documents, causally.

    Args:
        cu_seqlens: where segments start and end, (num_segments + 1,), from 0 to T.
        window: how many tokens a token sees, itself included.
        parents: (num_segments + 1,); entry s + 1 is the segment that segment s continues, an earlier one, or -1.
            Entry 0 is not used: it keeps the size above 1, which compiled code takes for a shape of its own. None: no
            segment continues another.
        scale: what scores are multiplied by; None for 1/sqrt(E).
        softcap: scaled scores s become softcap · tanh(s / softcap). Only `blockwise.py` and flash-attn can do that.
    Returns: (T, H * E) in the dtype of `q_THE`.
    """
    if cuda.can_attend(q_THE, parents, softcap):
        return cuda.attend(q_THE, k_TKE, v_TKE, cu_seqlens, window, Scoring(scale, softcap))
    if parents is None:
        parents = torch.full_like(cu_seqlens, -1)
    return attention_op(q_THE, k_TKE, v_TKE, cu_seqlens, parents, window, scale, softcap)[0]


def backend(q_THE: torch.Tensor, softcap: float | None) -> str:
    """Name the code that attends with such queries here, of documents that share nothing."""
    if cuda.can_attend(q_THE, None, softcap):
        return cuda.name()
    return "native kernel" if native.can_attend(q_THE, softcap) else "blocks of PyTorch products"


# An operator of its own, so that a compiled layer is one graph around it.


@torch.library.custom_op("lorakeet::attention", mutates_args=())
def attention_op(
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    parents: torch.Tensor,
    window: int,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with the best backend; also return what the native one keeps for its backward pass, or nothing."""
    documents = Documents(cu_seqlens, parents, window)
    if native.can_attend(q_THE, softcap):
        return native.attend(q_THE, k_TKE, v_TKE, documents, scale)
    out = blockwise.attend(q_THE, k_TKE, v_TKE, documents, Scoring(scale, softcap))
    return out, q_THE.new_empty(0, 0, dtype=torch.float32)


@torch.library.custom_op("lorakeet::attention_backward", mutates_args=())
def attention_backward_op(
    grad: torch.Tensor,
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    out: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_seqlens: torch.Tensor,
    parents: torch.Tensor,
    window: int,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of queries, keys and values, in their shapes."""
    documents = Documents(cu_seqlens, parents, window)
    if native.can_attend(q_THE, softcap):
        return native.attend_backward(grad, q_THE, k_TKE, v_TKE, out, lse_HT, documents, scale)
    return blockwise.attend_backward(grad, q_THE, k_TKE, v_TKE, documents, Scoring(scale, softcap))


@attention_op.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    parents: torch.Tensor,
    window: int,
    scale: float | None = None,
    softcap: float | None = None,
) -> object:
    T, H, E = q.shape
    kept = (H, T) if native.can_attend(q, softcap) else (0, 0)
    return q.new_empty(T, H * E), q.new_empty(kept, dtype=torch.float32)


@attention_backward_op.register_fake
def _(grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object) -> object:
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    q_THE, k_TKE, v_TKE, cu_seqlens, parents, *how = inputs
    ctx.save_for_backward(q_THE, k_TKE, v_TKE, *output, cu_seqlens, parents)
    ctx.how = how  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor, _: torch.Tensor) -> tuple:
    # Detached: output and lse came out of the forward pass, but no gradient goes through them here.
    saved = [tensor.detach() for tensor in ctx.saved_tensors]  # type: ignore[attr-defined]
    return *attention_backward_op(grad, *saved, *ctx.how), *[None] * 5  # type: ignore[attr-defined]


attention_op.register_autograd(_backward, setup_context=_save_for_backward)
