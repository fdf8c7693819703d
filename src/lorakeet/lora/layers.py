"""loralib's layers, with its signatures, parameter names, shapes, initialisation and numbers.

data in: the activations of the layer that is replaced → out: the same with `scaling * B @ A` added to the weight.
A layer is frozen in `weight` only; which other parameters train is decided by `mark_only_lora_as_trainable`.
Legend: T tokens (any leading axes), I input width, O output width, R rank.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakeet.lora.merging import LoRALayer as LoRALayer
from lorakeet.lora.merging import MergeableLayer
from lorakeet.ops.lora_linear import lora_linear


class LinearLoRA(MergeableLayer):
    """The update of a linear layer whose weight is (out, in), or (in, out) with `fan_in_fan_out`."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    fan_in_fan_out: bool = False

    def _add_lora_parameters(self, in_features: int, out_features: int, **factory: Any) -> None:
        """Create A (r, in) and B (out, r), uninitialised, and freeze the weight."""
        self.lora_A = nn.Parameter(torch.empty((self.r, in_features), **factory))
        self.lora_B = nn.Parameter(torch.empty((out_features, self.r), **factory))
        self.scaling = self.lora_alpha / self.r
        self.weight.requires_grad = False

    def reset_lora_parameters(self) -> None:
        """Draw A as nn.Linear draws its weight, and set B to zero: the update starts at zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def delta_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Compute `scaling * B @ A` in the shape of the weight."""
        dtype = dtype or self.lora_A.dtype
        delta_OI = self.lora_B.to(dtype) @ self.lora_A.to(dtype)
        return (delta_OI.transpose(0, 1) if self.fan_in_fan_out else delta_OI) * self.scaling

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., in) → (..., out)."""
        weight_OI = self.weight.transpose(0, 1) if self.fan_in_fan_out else self.weight
        if self.merged or self.r == 0:
            return F.linear(x, weight_OI, self.bias)
        return lora_linear(x, weight_OI, self.bias, self.lora_A, self.lora_B, self.scaling, self.lora_dropout(x))


class Linear(LinearLoRA, nn.Linear):
    """nn.Linear with a low-rank update: A (r, in_features), B (out_features, r).

    `fan_in_fan_out` stores the weight as (in_features, out_features), as GPT-2's Conv1D does.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, **kwargs)
        self._setup_lora(r, lora_alpha, lora_dropout, merge_weights)
        if r > 0:
            self._add_lora_parameters(in_features, out_features, dtype=self.weight.dtype, device=self.weight.device)
        # loralib draws the weight a second time; so do we, for the same numbers from the same seed.
        self.reset_parameters()
        self.fan_in_fan_out = fan_in_fan_out
        if fan_in_fan_out:
            self.weight.data = self.weight.data.transpose(0, 1).contiguous()

    def reset_parameters(self) -> None:
        """Draw weight and bias as nn.Linear does, then A and B."""
        self.unmerge()
        if self.fan_in_fan_out:
            self.weight.data = self.weight.data.transpose(0, 1)
        nn.Linear.reset_parameters(self)
        if self.fan_in_fan_out:
            self.weight.data = self.weight.data.transpose(0, 1)
        if self.r > 0:
            self.reset_lora_parameters()
