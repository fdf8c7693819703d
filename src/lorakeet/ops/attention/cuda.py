"""Flash attention on CUDA: whole documents in 16 bits.

`ops/attention/packed.py` says what is computed and chooses; fp32 and shared beginnings take `blockwise.py`.

T tokens, H query heads, K key-value heads, E head width.
"""

import importlib.util
from functools import cache

import torch


@cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def can_attend(q_THE: torch.Tensor, parents: torch.Tensor | None) -> bool:
    """Tell whether a flash kernel takes these queries: on CUDA, in 16 bits, and of documents that share nothing."""
    return q_THE.device.type == "cuda" and q_THE.dtype in (torch.float16, torch.bfloat16) and parents is None


def name() -> str:
    """Name the kernel that `attend` calls."""
    return "flash-attn" if _has_flash_attn() else "PyTorch's flash attention"


def attend(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, cu_seqlens: torch.Tensor, window: int
) -> torch.Tensor:
    """Call flash-attn if it is installed, else PyTorch's own variable-length kernel; returns (T, H * E)."""
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
