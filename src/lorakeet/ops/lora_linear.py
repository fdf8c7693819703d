"""The low-rank update of a linear layer: the trained pair beside what the frozen weight has made.

data in: activations, A and B → out: activations. Knows no modules.
Legend: T tokens (any leading axes), I input width, O output width, R rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def is_exact(result: Tensor, lora_A: Tensor) -> bool:
    """Tell whether a layer repeats loralib's operations to the bit: in float32 and float64, without casts."""
    return result.dtype == lora_A.dtype and lora_A.dtype in (torch.float32, torch.float64)


def add_lora(result_TO: Tensor, branch_TI: Tensor, lora_A_RI: Tensor, lora_B_OR: Tensor, scaling: float) -> Tensor:
    """Compute `result + scaling · branch Aᵀ Bᵀ`; `result`, what the frozen weight made, may be overwritten.

    The sum has the dtype of `result`; A and B may be wider (float32 adapters on a bfloat16 base) and are cast here.
    Source: Hu et al. 2021, arXiv:2106.09685, equation 3.
    """
    if is_exact(result_TO, lora_A_RI):
        result_TO += (branch_TI @ lora_A_RI.transpose(0, 1) @ lora_B_OR.transpose(0, 1)) * scaling
        return result_TO
    dtype = result_TO.dtype
    # The scale goes onto B, the smallest tensor here, before it is rounded: no pass over the activations, and one
    # rounding less.
    low_TR = F.linear(branch_TI.to(dtype), lora_A_RI.to(dtype))
    result_TO += F.linear(low_TR, (lora_B_OR * scaling).to(dtype))
    return result_TO
