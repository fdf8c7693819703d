"""Linear layers with a frozen weight of 4 or 8 bits; their state has bitsandbytes' names.

data in: the weight of a linear layer → out: a layer that computes as if over the dequantised weight. Which layers of a
model are quantised, and where their weights come from, is `quant/loading.py`; adapters on top are `lora/quantized.py`.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorakeet.quant import nf4
from lorakeet.quant.linear import dequantize_4bit, dequantize_8bit, linear_4bit, linear_8bit, quantize_8bit


class QuantizedLinear(nn.Module):
    """A linear layer over a quantised weight, (out, in)."""

    in_features: int
    out_features: int
    weight: Tensor
    bias: nn.Parameter | None
    dtype: torch.dtype
    """Of the weight before it was quantised."""

    def _setup_quantized(self, weight: Tensor, in_features: int, out_features: int, dtype: torch.dtype) -> None:
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None)

    @abstractmethod
    def apply_quantized(self, x: Tensor) -> Tensor:
        """Compute `x Wᵀ + bias`."""

    @abstractmethod
    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight that the layer computes with, (out, in), in `dtype` or the one it had before."""

    @abstractmethod
    def weight_tensors(self) -> dict[str, Tensor]:
        """Return what is stored of the weight, under the names bitsandbytes saves it by."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., in) → (..., out)."""
        return self.apply_quantized(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move to another device, but never cast: the scales stay float32."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: tensor for name, tensor in self.weight_tensors().items()})

    def extra_repr(self) -> str:
        """Describe the layer where a model is printed."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Linear4bit(QuantizedLinear):
    """A linear layer over a weight of 4 bits; its state is that of bitsandbytes' Linear4bit.

    Source: Dettmers et al. 2023, arXiv:2305.14314.
    """

    absmax: Tensor
    nested_absmax: Tensor | None
    nested_offset: Tensor | None

    def __init__(
        self,
        packed: Tensor,
        scales: nf4.Scales,
        in_features: int,
        out_features: int,
        *,
        quant_type: str,
        dtype: torch.dtype,
        blocksize: int = nf4.BLOCKSIZE,
    ) -> None:
        super().__init__()
        self._setup_quantized(packed, in_features, out_features, dtype)
        self.quant_type, self.blocksize = quant_type, blocksize
        for name in ("absmax", "nested_absmax", "nested_offset"):
            self.register_buffer(name, getattr(scales, name), persistent=False)

    @classmethod
    def quantize(cls, weight_OI: Tensor, *, quant_type: str = "nf4", double_quant: bool = True) -> "Linear4bit":
        """Quantise the weight of a linear layer.

        Raises: ModelError if it is not finite.
        """
        packed, scales = nf4.quantize(weight_OI, quant_type, double_quant=double_quant)
        out_features, in_features = weight_OI.shape
        return cls(packed, scales, in_features, out_features, quant_type=quant_type, dtype=weight_OI.dtype)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Linear4bit":
        """Build the layer from what `weight_tensors` gives, or bitsandbytes has saved."""
        (key,) = (name for name in tensors if name.startswith("weight.quant_state.bitsandbytes__"))
        facts = json.loads(bytes(tensors[key].tolist()))
        out_features, in_features = facts["shape"]
        offset = facts.get("nested_offset")
        scales = nf4.Scales(
            tensors["weight.absmax"],
            tensors.get("weight.nested_absmax"),
            None if offset is None else torch.tensor(float(offset), device=tensors["weight"].device),
        )
        return cls(
            tensors["weight"],
            scales,
            in_features,
            out_features,
            quant_type=facts["quant_type"],
            dtype=getattr(torch, facts["dtype"]),
            blocksize=facts["blocksize"],
        )

    @property
    def scales(self) -> nf4.Scales:
        """The scales of the weight's blocks."""
        return nf4.Scales(self.absmax, self.nested_absmax, self.nested_offset)

    def apply_quantized(self, x: Tensor) -> Tensor:
        """Compute `x Wᵀ + bias`."""
        return linear_4bit(x, self.weight, self.scales, self.bias, self.out_features, self.quant_type, self.blocksize)

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight that the layer computes with, (out, in)."""
        shape = (self.out_features, self.in_features)
        return dequantize_4bit(self.weight, self.scales, shape, dtype or self.dtype, self.quant_type, self.blocksize)

    def weight_tensors(self) -> dict[str, Tensor]:
        """Return packed bytes, scales, code tables and, as JSON in bytes, the rest."""
        facts: dict[str, Any] = {
            "quant_type": self.quant_type,
            "blocksize": self.blocksize,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": [self.out_features, self.in_features],
        }
        tensors = {
            "weight": self.weight.detach(),
            "weight.absmax": self.absmax,
            "weight.quant_map": nf4.code_table(self.quant_type),
        }
        if self.nested_absmax is not None and self.nested_offset is not None:
            tensors |= {"weight.nested_absmax": self.nested_absmax, "weight.nested_quant_map": nf4.dynamic_map()}
            facts |= {
                "nested_blocksize": nf4.NESTED_BLOCKSIZE,
                "nested_dtype": "float32",
                "nested_offset": self.nested_offset.item(),
            }
        key = f"weight.quant_state.bitsandbytes__{self.quant_type}"
        return tensors | {key: torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)}


class Linear8bit(QuantizedLinear):
    """A linear layer over a weight of whole numbers, one scale a row; its state is that of Linear8bitLt.

    Source: Dettmers et al. 2022, arXiv:2208.07339.
    """

    SCB: Tensor

    def __init__(self, weight_OI: Tensor, absmax_O: Tensor, *, dtype: torch.dtype) -> None:
        super().__init__()
        out_features, in_features = weight_OI.shape
        self._setup_quantized(weight_OI, in_features, out_features, dtype)
        self.register_buffer("SCB", absmax_O, persistent=False)

    @classmethod
    def quantize(cls, weight_OI: Tensor) -> "Linear8bit":
        """Quantise the weight of a linear layer.

        Raises: ModelError if it is not finite.
        """
        weight, absmax = quantize_8bit(weight_OI)
        return cls(weight, absmax, dtype=weight_OI.dtype)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> "Linear8bit":
        """Build the layer from what `weight_tensors` gives, or bitsandbytes has saved."""
        return cls(tensors["weight"], tensors["SCB"], dtype=dtype)

    def apply_quantized(self, x: Tensor) -> Tensor:
        """Compute `x Wᵀ + bias`."""
        return linear_8bit(x, self.weight, self.SCB, self.bias)

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight that the layer computes with, (out, in)."""
        return dequantize_8bit(self.weight, self.SCB, dtype or self.dtype)

    def weight_tensors(self) -> dict[str, Tensor]:
        """Return the whole numbers and the rows' largest absolute values; 0 is the format "row"."""
        row_format = torch.tensor(0, dtype=torch.uint8)
        return {"weight": self.weight.detach(), "SCB": self.SCB, "weight_format": row_format}


def num_weights(model: nn.Module) -> int:
    """Count a model's weights, those in quantised layers too."""
    packed = {id(part.weight): part for part in model.modules() if isinstance(part, QuantizedLinear)}
    return sum(
        packed[id(p)].in_features * packed[id(p)].out_features if id(p) in packed else p.numel() for p in model.parameters()
    )
