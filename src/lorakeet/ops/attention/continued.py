"""Attention of several new tokens to keys and values of which the first are already kept.

data in: queries, keys and values of new tokens, the stores, where each token goes → out: one vector per token and
query head; the stores hold the new keys and values. A document may begin in the stores or here, and bring any number
of tokens: it is how a prompt goes on behind a beginning that was read before.

T tokens, H query heads, K key-value heads, E head width, M rows of the stores, N their columns.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F


@torch.library.custom_op("lorakeet::continued_attention", mutates_args=("keys_MKNE", "values_MKNE"))
def continued_attention(
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    keys_MKNE: torch.Tensor,
    values_MKNE: torch.Tensor,
    cu_seqlens: torch.Tensor,
    rows_T: torch.Tensor,
    columns_T: torch.Tensor,
    window: int,
) -> torch.Tensor:
    """Store the new keys and values and attend; returns (T, H * E).

    Args:
        rows_T: the row of each token's document.
        columns_T: the column of each token, which is its position in its document; a document's follow each other.
    """
    keys_MKNE[rows_T, :, columns_T] = k_TKE
    values_MKNE[rows_T, :, columns_T] = v_TKE
    out = torch.empty_like(q_THE)
    for start, end in pairwise(cu_seqlens.tolist()):
        row, last = int(rows_T[start]), int(columns_T[end - 1])
        keys_KNE, values_KNE = keys_MKNE[row, :, : last + 1], values_MKNE[row, :, : last + 1]
        behind_TN = columns_T[start:end, None] - torch.arange(last + 1, device=q_THE.device)
        visible_TN = (behind_TN >= 0) & (behind_TN < window)
        attended_HTE = F.scaled_dot_product_attention(
            q_THE[start:end].transpose(0, 1)[None], keys_KNE[None], values_KNE[None], attn_mask=visible_TN, enable_gqa=True
        )[0]
        out[start:end] = attended_HTE.transpose(0, 1)
    return out.flatten(1)


@continued_attention.register_fake
def _(q_THE: torch.Tensor, *_: object) -> torch.Tensor:
    T, H, E = q_THE.shape
    return q_THE.new_empty(T, H * E)
