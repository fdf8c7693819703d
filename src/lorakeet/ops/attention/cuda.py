"""Flash attention on CUDA: whole documents in 16 bits.

`ops/attention/packed.py` says what is computed and chooses; fp32 and shared beginnings take `blockwise.py`.

T tokens, H query heads, K key-value heads, E head width.
"""

import importlib.util
from functools import cache
from typing import Any

import torch

from lorakeet.ops.attention.segments import Scoring


@cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def can_attend(q_THE: torch.Tensor, parents: torch.Tensor | None, softcap: float | None = None) -> bool:
    """Tell whether a flash kernel takes these queries: on CUDA, in 16 bits, and of documents that share nothing.

    A soft cap only flash-attn can do.
    """
    is_fit = q_THE.device.type == "cuda" and q_THE.dtype in (torch.float16, torch.bfloat16) and parents is None
    return is_fit and (softcap is None or _has_flash_attn())


def name() -> str:
    """Name the kernel that `attend` calls."""
    return "flash-attn" if _has_flash_attn() else "PyTorch's flash attention"


def attend(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, cu_seqlens: torch.Tensor, window: int, scoring: Scoring
) -> torch.Tensor:
    """Call flash-attn if it is installed, else PyTorch's own variable-length kernel; returns (T, H * E)."""
    # The stream's length bounds every document's, and reading the true maximum would wait for the device.
    longest = q_THE.shape[0]
    left = -1 if window >= longest else window - 1
    places = cu_seqlens, cu_seqlens, longest, longest
    how: dict[str, Any]
    if _has_flash_attn():
        from flash_attn import flash_attn_varlen_func

        how = {"softmax_scale": scoring.scale, "softcap": scoring.softcap or 0.0}
        out = flash_attn_varlen_func(q_THE, k_TKE, v_TKE, *places, causal=True, window_size=(left, 0), **how)
    else:
        from torch.nn.attention.varlen import varlen_attn

        grouped = q_THE.shape[1] != k_TKE.shape[1]
        how = {"scale": scoring.scale, "enable_gqa": grouped}
        out = varlen_attn(q_THE, k_TKE, v_TKE, *places, window_size=(left, 0), **how)
    return out.flatten(1)
