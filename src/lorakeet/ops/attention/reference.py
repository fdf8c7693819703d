"""The slow truth of attention, which the tests hold every backend against: plain, and differentiable.

T tokens, H query heads, K key-value heads (H a multiple of K), E head width, M rows of the stores, N their columns.
"""

import torch

from lorakeet.ops.attention.segments import NO_WINDOW, USUAL, Scoring, read_segments
from lorakeet.ops.soft_cap import soft_cap


def attention_reference(
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int = NO_WINDOW,
    parents: torch.Tensor | None = None,
    scoring: Scoring = USUAL,
) -> torch.Tensor:
    """Compute what `attention` computes, with one mask over the whole stream."""
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
    scores_HTT = _scored(torch.einsum("qhe,khe->hqk", q_THE, k_THE), scoring, E)
    probs_HTT = scores_HTT.masked_fill(~visible_TT.to(q_THE.device), float("-inf")).softmax(-1).to(q_THE.dtype)
    return torch.einsum("hqk,khe->qhe", probs_HTT, v_THE).reshape(T, H * E)


def _scored(products: torch.Tensor, scoring: Scoring, head_width: int) -> torch.Tensor:
    scores = products.to(torch.promote_types(products.dtype, torch.float32)) * scoring.scaled_by(head_width)
    return scores if scoring.softcap is None else soft_cap(scores, scoring.softcap)


def cached_attention_reference(
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    keys_MKNE: torch.Tensor,
    values_MKNE: torch.Tensor,
    rows_T: torch.Tensor,
    columns_T: torch.Tensor,
    window: int = NO_WINDOW,
    scoring: Scoring = USUAL,
) -> torch.Tensor:
    """Compute what `cached_attention` computes, one token at a time; the stores get the new keys and values."""
    keys_MKNE[rows_T, :, columns_T] = k_TKE
    values_MKNE[rows_T, :, columns_T] = v_TKE
    groups, outputs = q_THE.shape[1] // k_TKE.shape[1], []
    for q_HE, row, column in zip(q_THE, rows_T.tolist(), columns_T.tolist(), strict=True):
        visible = slice(max(0, column - window + 1), column + 1)
        k_HNE, v_HNE = (x[row, :, visible].repeat_interleave(groups, dim=0) for x in (keys_MKNE, values_MKNE))
        scores_HN = _scored(torch.einsum("he,hne->hn", q_HE, k_HNE), scoring, q_HE.shape[1])
        outputs.append(torch.einsum("hn,hne->he", scores_HN.softmax(-1).to(q_HE.dtype), v_HNE).flatten())
    return torch.stack(outputs)
