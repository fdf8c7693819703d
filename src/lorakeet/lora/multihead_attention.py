"""LoRA for torch.nn.MultiheadAttention and other layers of torch that read a child's weight instead of calling it.

data in and out: those of the layer that is replaced. torch's attention and its fast inference path take
`in_proj_weight`, `out_proj.weight` and `linear1.weight` as tensors, so an update added in a child's forward would be
ignored silently. Here these attributes are the weight with the update in it, whoever reads them.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lorakeet.lora.layers import LinearLoRA
from lorakeet.lora.merging import MergeableLayer
from lorakeet.ops.lora_linear import add_lora


def effective_weight(layer: MergeableLayer) -> Tensor:
    """Return the weight with the update in it, differentiable in lora_A and lora_B."""
    weight = layer.frozen_weight
    if not layer.adds_update:
        return weight
    return weight + layer.delta_weight(layer.lora_A.dtype).to(weight.dtype)


class ReadLinear(LinearLoRA, NonDynamicallyQuantizableLinear):
    """nn.Linear with an update that those who read `weight` see too."""

    def __init__(self, in_features: int, out_features: int, r: int, lora_alpha: float, **kwargs: Any) -> None:
        NonDynamicallyQuantizableLinear.__init__(self, in_features, out_features, **kwargs)
        self._setup_lora(r, lora_alpha, 0.0, merge_weights=False)
        self._add_lora_parameters(in_features, out_features)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight with the update in it, (out, in)."""
        if "weight" not in self._parameters:
            raise AttributeError("weight")
        return effective_weight(self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer where it is called after all: (..., in) → (..., out)."""
        result = F.linear(x, self.frozen_weight, self.bias)
        return add_lora(result, x, *self.pair()) if self.adds_update else result


class OutProjection(ReadLinear):
    """The output projection of an attention layer that has LoRA as a whole.

    PEFT adds this projection's update twice (its MultiheadAttention.merge adds it and then calls merge of the
    projection). A file means what PEFT computes from it, so the update is halved on the way out and doubled on the
    way in, both without rounding.
    """

    def to_peft(self) -> dict[str, Tensor]:
        """Return the update as the tensors from which PEFT computes it."""
        return {"lora_A.weight": self.lora_A.detach(), "lora_B.weight": self.lora_B.detach() / 2}

    def _copy_from_peft(self, tensors: Mapping[str, Tensor]) -> None:
        self.lora_A.copy_(tensors["lora_A.weight"])
        self.lora_B.copy_(tensors["lora_B.weight"] * 2)


class MultiheadAttention(MergeableLayer, nn.MultiheadAttention):
    """nn.MultiheadAttention with one update on the packed q, k, v projection and one on the output projection.

    A is (r, embed_dim) and B (3 * embed_dim, r), as in PEFT.
    """

    _weight_name = "in_proj_weight"
    _weight_key = "in_proj_weight"

    def __init__(self, embed_dim: int, num_heads: int, r: int, lora_alpha: float, **kwargs: Any) -> None:
        nn.MultiheadAttention.__init__(self, embed_dim, num_heads, **kwargs)
        self._setup_lora(r, lora_alpha, 0.0, merge_weights=False)
        weight = self.frozen_weight
        self.lora_A = nn.Parameter(weight.new_empty((r, embed_dim)))
        self.lora_B = nn.Parameter(weight.new_empty((3 * embed_dim, r)))

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The packed projection with the update in it, (3 * embed_dim, embed_dim)."""
        if "in_proj_weight" not in self._parameters:
            raise AttributeError("in_proj_weight")
        # While torch's constructor fills the weight there is no update yet.
        return effective_weight(self) if self.r > 0 else self.frozen_weight

    def reset_lora_parameters(self) -> None:
        """Draw A as nn.Linear draws its weight, and set B to zero: the update starts at zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def delta_weight(self, dtype: torch.dtype) -> Tensor:
        """Compute `scaling * B @ A`, (3 * embed_dim, embed_dim)."""
        return (self.lora_B.to(dtype) @ self.lora_A.to(dtype)) * self.scaling

    def adopt(self, module: nn.Module, scaling: float) -> None:
        """Take over an existing attention layer and put LoRA onto its output projection too."""
        super().adopt(module, scaling)
        assert isinstance(module, nn.MultiheadAttention)
        out_proj = _meta_linear(OutProjection, module.out_proj, self.r, self.lora_alpha)
        out_proj.adopt(module.out_proj, scaling)
        self.out_proj = out_proj

    def release(self) -> nn.Module:
        """Return the attention layer that was adopted, with its output projection."""
        module = super().release()
        if isinstance(self.out_proj, MergeableLayer):
            module.out_proj = self.out_proj.release()
        return module


def read_linear(module: nn.Linear, *, r: int, lora_alpha: float) -> ReadLinear:
    """Build the layer that takes the place of a linear layer whose weight is read, on the meta device."""
    return _meta_linear(ReadLinear, module, r, lora_alpha)


def _meta_linear(kind: type[ReadLinear], module: nn.Linear, r: int, lora_alpha: float) -> ReadLinear:
    bias = module.bias is not None
    return kind(module.in_features, module.out_features, r, lora_alpha, bias=bias, device="meta")


def adapted_attention(module: nn.MultiheadAttention, *, r: int, lora_alpha: float) -> MultiheadAttention:
    """Build the layer that takes the place of an attention layer, on the meta device."""
    return MultiheadAttention(
        module.embed_dim,
        module.num_heads,
        r,
        lora_alpha,
        dropout=module.dropout,
        bias=module.in_proj_bias is not None,
        add_bias_kv=module.bias_k is not None,
        add_zero_attn=module.add_zero_attn,
        batch_first=module.batch_first,
        device="meta",
    )
