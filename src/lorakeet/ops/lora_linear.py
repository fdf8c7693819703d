"""The linear layer with a low-rank update: a frozen weight, and the trained pair on the side.

data in: activations, a frozen weight, A and B → out: activations. Knows no modules.
Legend: T tokens (any leading axes), I input width, O output width, R rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def lora_linear(
    x_TI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    lora_A_RI: Tensor,
    lora_B_OR: Tensor,
    scaling: float,
    branch_TI: Tensor | None = None,
) -> Tensor:
    """Compute `x Wᵀ + bias + scaling · branch Aᵀ Bᵀ`, where `branch` is x unless dropout has changed it.

    The result has the dtype of `x Wᵀ`; A and B may be wider (float32 adapters on a bfloat16 base) and are cast here.
    Source: Hu et al. 2021, arXiv:2106.09685, equation 3.
    """
    result_TO = F.linear(x_TI, weight_OI, bias_O)
    return add_lora(result_TO, x_TI if branch_TI is None else branch_TI, lora_A_RI, lora_B_OR, scaling)


def is_exact(result: Tensor, lora_A: Tensor) -> bool:
    """Tell whether a layer repeats loralib's operations to the bit: in float32 and float64, without casts."""
    return result.dtype == lora_A.dtype and lora_A.dtype in (torch.float32, torch.float64)


def add_lora(result_TO: Tensor, branch_TI: Tensor, lora_A_RI: Tensor, lora_B_OR: Tensor, scaling: float) -> Tensor:
    """Add the scaled update to `result_TO`, which may be overwritten."""
    if is_exact(result_TO, lora_A_RI):
        result_TO += (branch_TI @ lora_A_RI.transpose(0, 1) @ lora_B_OR.transpose(0, 1)) * scaling
        return result_TO
    dtype = result_TO.dtype
    # The scale goes onto B, the smallest tensor here, before it is rounded: no pass over the activations, and one
    # rounding less.
    low_TR = F.linear(branch_TI.to(dtype), lora_A_RI.to(dtype))
    result_TO += F.linear(low_TR, (lora_B_OR * scaling).to(dtype))
    return result_TO
