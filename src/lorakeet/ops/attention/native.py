"""The C++ attention kernels on the CPU: attention_bf16.cpp and attention_fp32.cpp, with one interface.

`ops/attention/packed.py` says what is computed.

T tokens, H query heads, K key-value heads, E head width.
"""

import ctypes
from pathlib import Path

import torch

from lorakeet.machine.native_code import load_kernel, pointer
from lorakeet.ops.attention.segments import Documents

KERNELS = {
    torch.bfloat16: Path(__file__).with_name("attention_bf16.cpp"),
    torch.float32: Path(__file__).with_name("attention_fp32.cpp"),
}
WIDTH_STEP, MAX_HEAD_WIDTH = 32, 256
"""Widths of a head that the kernels' blocks have room for."""


def can_attend(q_THE: torch.Tensor, softcap: float | None = None) -> bool:
    """Tell whether the kernel takes these queries, and their keys and values, on this machine: never with a soft cap."""
    E = q_THE.shape[-1]
    is_fit = q_THE.dtype in KERNELS and q_THE.device.type == "cpu" and E % WIDTH_STEP == 0 and E <= MAX_HEAD_WIDTH
    return softcap is None and is_fit and load_kernel(KERNELS[q_THE.dtype]) is not None


def attend(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, documents: Documents, scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend within documents; scores are multiplied by `scale`, None for 1/sqrt(E).

    Returns: (T, H * E), and for the backward pass (H, T), each token's log2 of the sum of its weights.
    """
    T, H, E = q_THE.shape
    q_THE, k_TKE, v_TKE = (_with_heads_together(x) for x in (q_THE, k_TKE, v_TKE))
    out = q_THE.new_empty(T, H * E)
    lse_HT = q_THE.new_empty(H, T, dtype=torch.float32)
    _call("lorakeet_attention_forward", q_THE, k_TKE, v_TKE, out, lse_HT, documents, scale)
    return out, lse_HT


def attend_backward(
    grad: torch.Tensor,
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    out: torch.Tensor,
    lse_HT: torch.Tensor,
    documents: Documents,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of queries, keys and values, in their shapes."""
    q_THE, k_TKE, v_TKE = (_with_heads_together(x) for x in (q_THE, k_TKE, v_TKE))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q_THE, k_TKE, v_TKE))
    # Query heads that share a key head run side by side; what they give its gradient is summed afterwards.
    per_head = torch.empty(2, *q_THE.shape, dtype=torch.float32)
    results = grad.contiguous(), dq, dk, dv, per_head
    _call("lorakeet_attention_backward", q_THE, k_TKE, v_TKE, out, lse_HT, documents, scale, *results)
    return dq, dk, dv


def _with_heads_together(x_THE: torch.Tensor) -> torch.Tensor:
    """Copy if needed, so that each token's heads lie end to end; tokens may lie apart."""
    is_fit = x_THE.stride(2) == 1 and x_THE.stride(1) == x_THE.shape[2] and x_THE.stride(0) % 2 == 0
    return x_THE if is_fit else x_THE.contiguous()


def _call(
    function: str,
    q_THE: torch.Tensor,
    k_TKE: torch.Tensor,
    v_TKE: torch.Tensor,
    out: torch.Tensor,
    lse_HT: torch.Tensor,
    documents: Documents,
    scale: float | None,
    *results: torch.Tensor,
) -> None:
    (T, H, E), K, num_segments = q_THE.shape, k_TKE.shape[1], len(documents.cu_seqlens) - 1
    cu_seqlens, parents = documents.cu_seqlens.int().contiguous(), documents.parents.int().contiguous()
    strides = [ctypes.c_int64(x.stride(0)) for x in (q_THE, k_TKE, v_TKE)]
    kernel = getattr(load_kernel(KERNELS[q_THE.dtype]), function)
    kernel(
        *(pointer(x) for x in (q_THE, k_TKE, v_TKE, out, lse_HT)),
        *strides,
        *(T, H, K, E, documents.window, ctypes.c_float(scale or 0.0)),
        *(pointer(cu_seqlens), pointer(parents), num_segments),
        *(pointer(x) for x in results),
    )
