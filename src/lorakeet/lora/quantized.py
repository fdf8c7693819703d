"""LoRA on linear layers whose frozen weight is quantised: QLoRA.

data in: a quantised layer → out: the same with a float32 update of rank r beside it. The update cannot be merged into
a quantised weight, since rounding to 4 bits would take most of it away; it is merged into the 16-bit base instead.

Source: Dettmers et al. 2023, arXiv:2305.14314.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lorakeet.errors import AdapterError
from lorakeet.lora.layers import LinearLoRA
from lorakeet.quant import layers as quant


class QuantizedLoRA(LinearLoRA, quant.QuantizedLinear):
    """What LoRA on 4 and on 8 bits share; made by `adopt` alone."""

    def __init__(self, module: quant.QuantizedLinear, r: int, lora_alpha: float, lora_dropout: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.dtype = module.in_features, module.out_features, module.dtype
        self._setup_lora(r, lora_alpha, lora_dropout, merge_weights=False)
        self.lora_A = nn.Parameter(torch.empty(r, module.in_features, device="meta"))
        self.lora_B = nn.Parameter(torch.empty(module.out_features, r, device="meta"))

    def adopt(self, module: nn.Module, scaling: float) -> None:
        """Take over the scales too."""
        for name, buffer in module._buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        super().adopt(module, scaling)

    def release(self) -> nn.Module:
        """Return the layer with its scales where they are now."""
        module = super().release()
        module._buffers.update(self._buffers)
        return module

    def base_rows(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that the layer computes with, (out, in)."""
        return self.dequantized(dtype)

    def base_result(self, x: Tensor) -> Tensor:
        """Apply the layer without its update."""
        return self.apply_quantized(x)

    def check_mergeable(self) -> None:
        """Refuse: see above."""
        raise AdapterError(
            "E-ADPT-70",
            "the base is quantised, and merging into it would round the update away",
            fix="Merge into the 16-bit base: lorakeet merge RUN -o DIR",
        )


class Linear4bit(QuantizedLoRA, quant.Linear4bit):
    """A 4-bit linear layer with an update of rank r."""

    def __init__(self, module: quant.Linear4bit, *options: Any) -> None:
        QuantizedLoRA.__init__(self, module, *options)
        self.quant_type, self.blocksize = module.quant_type, module.blocksize


class Linear8bit(QuantizedLoRA, quant.Linear8bit):
    """An 8-bit linear layer with an update of rank r."""


def adapted_quantized(module: nn.Module, *, r: int, lora_alpha: float, lora_dropout: float) -> QuantizedLoRA:
    """Build the layer that takes the place of a quantised one."""
    if isinstance(module, quant.Linear4bit):
        return Linear4bit(module, r, lora_alpha, lora_dropout)
    assert isinstance(module, quant.Linear8bit)
    return Linear8bit(module, r, lora_alpha, lora_dropout)
