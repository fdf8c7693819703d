"""LoRA for transformers' Conv1D, the linear layer of GPT-2, whose weight is (in, out).

data in: (..., nx) → out: (..., nf). Importing this module imports transformers.
"""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakeet.lora.layers import LinearLoRA


class TransformersConv1D(LinearLoRA, Conv1D):
    """transformers' Conv1D with an update of rank r: A (r, nx), B (nf, r)."""

    fan_in_fan_out = True

    def __init__(self, nf: int, nx: int, r: int, lora_alpha: float, lora_dropout: float) -> None:
        Conv1D.__init__(self, nf, nx)
        self._setup_lora(r, lora_alpha, lora_dropout, merge_weights=False)
        self._add_lora_parameters(nx, nf)

    __repr__ = nn.Module.__repr__  # Conv1D's own does not show extra_repr

    def extra_repr(self) -> str:
        """Describe the layer where a model is printed."""
        return f"nf={self.nf}, nx={self.nx}, {super().extra_repr()}"


def adapted_conv1d(module: nn.Module, *, r: int, lora_alpha: float, lora_dropout: float) -> TransformersConv1D:
    """Build the layer that takes the place of a Conv1D, on the meta device."""
    assert isinstance(module, Conv1D)
    nx, nf = module.weight.shape
    with torch.device("meta"):
        return TransformersConv1D(nf, nx, r, lora_alpha, lora_dropout)
