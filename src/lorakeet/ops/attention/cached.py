"""Attention of new tokens to keys and values that are kept from earlier calls, which it adds to.

data in: queries, keys and values of new tokens, the stores, where each token goes → out: one vector per token and
query head; the stores hold the new keys and values. There are three kinds of calls:

- documents that start here, each any number of tokens long, as in training;
- documents that each bring exactly one more token: two matrix multiplications over all documents at once, no loop, no
  copy of keys for grouped queries;
- documents of which some go on, by any number of tokens, behind a beginning that was read before: one by one.

The slow truth of all three is `reference.py`. It is one opaque operation, so that a compiled decoder layer is one graph.

T tokens, B documents, H query heads, K key-value heads, G = H / K query heads of a key head, E head width,
M rows of the stores, N their columns.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from lorakeet.ops.attention.packed import attention
from lorakeet.ops.attention.segments import Scoring
from lorakeet.ops.soft_cap import soft_cap


@torch.library.custom_op("lorakeet::cached_attention", mutates_args=("keys_MKNE", "values_MKNE"))
def cached_attention(
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    keys_MKNE: torch.Tensor,
    values_MKNE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    rows_T: torch.Tensor,
    columns_T: torch.Tensor,
    bounds: torch.Tensor,
    continues: bool,
    window: int,
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Store the new keys and values and attend; returns (T, H * E).

    Args:
        rows_T: the row of each token's document.
        columns_T: the column of each token, which is its position in its document.
        bounds: three integers on the CPU: the first row, and the first and the end of the columns to look at, if
            each document brings one token and the documents lie in rows one after the other; else all zero.
        continues: whether a document begins in the stores and brings more than one token.
    """
    keys_MKNE[rows_T, :, columns_T] = k_TKE
    values_MKNE[rows_T, :, columns_T] = v_TKE
    scoring = Scoring(scale, softcap)
    if continues:
        return _attend_continued(q_THE, keys_MKNE, values_MKNE, cu_seqlens, rows_T, columns_T, window, scoring)
    first_row, first_column, end_column = bounds.tolist()
    if end_column == 0:
        return attention(q_THE, k_TKE, v_TKE, cu_seqlens, window, None, scale, softcap)
    B = q_THE.shape[0]
    block = slice(first_row, first_row + B), slice(None), slice(first_column, end_column)
    return _attend_one_each(q_THE, keys_MKNE[block], values_MKNE[block], columns_T - first_column, window, scoring)


@cached_attention.register_fake
def _(q_THE: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    T, H, E = q_THE.shape
    return q_THE.new_empty(T, H * E)


def _attend_one_each(
    q_BHE: torch.Tensor,
    keys_BKNE: torch.Tensor,
    values_BKNE: torch.Tensor,
    column_B: torch.Tensor,
    window: int,
    scoring: Scoring,
) -> torch.Tensor:
    """Let one query of each document look at the columns up to its own, at most `window` of them."""
    B, H, E = q_BHE.shape
    K, N = keys_BKNE.shape[1:3]
    G = H // K
    # Keys times queries, in this order: it reads the keys as they lie, three times as fast in bf16 as the other way.
    queries = q_BHE.reshape(B * K, G, E).transpose(1, 2)
    scores = torch.bmm(keys_BKNE.flatten(0, 1), queries).transpose(1, 2).float() * scoring.scaled_by(E)
    if scoring.softcap is not None:
        scores = soft_cap(scores, scoring.softcap)
    behind_BN = column_B[:, None] - torch.arange(N, device=column_B.device)
    hidden_BN = (behind_BN < 0) | (behind_BN >= window)
    scores = scores.unflatten(0, (B, K)).masked_fill(hidden_BN[:, None, None], float("-inf"))
    probs = scores.softmax(-1).to(q_BHE.dtype).flatten(0, 1)
    return torch.bmm(probs, values_BKNE.flatten(0, 1)).view(B, H * E)


def _attend_continued(
    q_THE: torch.Tensor,
    keys_MKNE: torch.Tensor,
    values_MKNE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    rows_T: torch.Tensor,
    columns_T: torch.Tensor,
    window: int,
    scoring: Scoring,
) -> torch.Tensor:
    """Let the new tokens of each document, whose columns follow each other, look at its columns up to their own."""
    out = torch.empty_like(q_THE)
    for start, end in pairwise(cu_seqlens.tolist()):
        row, last = int(rows_T[start]), int(columns_T[end - 1])
        keys_KNE, values_KNE = keys_MKNE[row, :, : last + 1], values_MKNE[row, :, : last + 1]
        behind_TN = columns_T[start:end, None] - torch.arange(last + 1, device=q_THE.device)
        visible_TN = (behind_TN >= 0) & (behind_TN < window)
        q_HTE = q_THE[start:end].transpose(0, 1)
        out[start:end] = _attend_where(visible_TN, q_HTE, keys_KNE, values_KNE, scoring).transpose(0, 1)
    return out.flatten(1)


def _attend_where(
    visible_TN: torch.Tensor, q_HTE: torch.Tensor, keys_KNE: torch.Tensor, values_KNE: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """Attend under a mask; PyTorch's own function cannot cap scores."""
    if scoring.softcap is None:
        q_BHTE, keys_BKNE, values_BKNE = q_HTE[None], keys_KNE[None], values_KNE[None]
        how: dict[str, Any] = {"attn_mask": visible_TN, "scale": scoring.scale, "enable_gqa": True}
        return F.scaled_dot_product_attention(q_BHTE, keys_BKNE, values_BKNE, **how)[0]
    groups, width = len(q_HTE) // len(keys_KNE), q_HTE.shape[-1]
    keys_HNE, values_HNE = (x.repeat_interleave(groups, dim=0) for x in (keys_KNE, values_KNE))
    scores = soft_cap(torch.bmm(q_HTE, keys_HNE.transpose(1, 2)).float() * scoring.scaled_by(width), scoring.softcap)
    return torch.bmm(scores.masked_fill(~visible_TN, float("-inf")).softmax(-1).to(q_HTE.dtype), values_HNE)
