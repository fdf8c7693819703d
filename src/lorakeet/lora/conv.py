"""Convolutions with a low-rank update: loralib's own form, and PEFT's for layers of existing models.

data in: (batch, channels, positions...) → out: the convolution with `W + scaling * update`.

loralib cuts a 2d kernel (out, in / groups, k, k) into the matrix product of B (out / groups * k, r * k) and
A (r * k, in * k), read row by row. That fits two kernel axes of one size only. Here the first of several kernel axes
goes with the output and the others with the input, which is loralib's shape for square 2d kernels and fits every
other kernel; the only axis of a 1d kernel goes with the input.
PEFT's form is a convolution to r channels followed by one of kernel size 1; the layers that `inject` puts use it, so
that their adapters are PEFT's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakeet.errors import AdapterError
from lorakeet.lora.merging import MergeableLayer

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_COPIED = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
    "padding_mode",
    "_reversed_padding_repeated_twice",
)


class ConvLoRA(MergeableLayer):
    """loralib's convolution: the plain layer as `conv`, with lora_A and lora_B beside it."""

    _weight_key = "conv.weight"

    conv: Any

    def __init__(
        self,
        conv_module: Callable[..., nn.Module],
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        nn.Module.__init__(self)
        self.conv = conv_module(in_channels, out_channels, kernel_size, **kwargs)
        for name in _COPIED:
            setattr(self, name, getattr(self.conv, name))
        self._setup_lora(r, lora_alpha, lora_dropout, merge_weights)
        if r > 0:
            first, rest = self._split_kernel()
            weight: Tensor = self.conv.weight
            groups: int = self.conv.groups
            self.lora_A = nn.Parameter(weight.new_empty((r * first, in_channels * rest)))
            self.lora_B = nn.Parameter(weight.new_empty((out_channels // groups * first, r * first)))
            weight.requires_grad = False
        self.reset_parameters()

    # The weight stays in `conv`, under loralib's key; these make the layer answer as the layer it replaces.
    @property
    def weight(self) -> Tensor:
        """The weight of `conv`."""
        return self.conv.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of `conv`."""
        return self.conv.bias

    @property
    def _weight_owner(self) -> nn.Module:
        return self.conv

    def _split_kernel(self) -> tuple[int, int]:
        """Return how many kernel positions go with the output, and how many with the input."""
        size = self.conv.kernel_size
        return (size[0], math.prod(size[1:])) if len(size) > 1 else (1, size[0])

    def reset_parameters(self) -> None:
        """Draw weight and bias as the plain convolution does, then A and B."""
        self.unmerge()
        self.conv.reset_parameters()
        if self.r > 0:
            self.reset_lora_parameters()

    def reset_lora_parameters(self) -> None:
        """Draw A as nn.Linear draws its weight, and set B to zero: the update starts at zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def delta_weight(self, dtype: torch.dtype) -> Tensor:
        """Compute the update in the shape of the kernel and in `dtype`."""
        return (self.lora_B.to(dtype) @ self.lora_A.to(dtype)).view(self.conv.weight.shape) * self.scaling

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution."""
        conv = self.conv
        if not self.adds_update:
            return conv(x)
        delta = self.delta_weight(self.lora_A.dtype).to(conv.weight.dtype)
        if self.training and isinstance(self.lora_dropout, nn.Dropout):
            # Dropout belongs to the input of the update alone, so the two convolutions cannot be one.
            return conv(x) + conv._conv_forward(self.lora_dropout(x), delta, None)
        return conv._conv_forward(x, conv.weight + delta, conv.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Also accept the keys of a plain convolution and of loralib before 0.1.2: `weight` for `conv.weight`."""
        for name in ("weight", "bias"):
            plain, nested = f"{prefix}{name}", f"{prefix}conv.{name}"
            if plain in state_dict and nested not in state_dict:
                state_dict[nested] = state_dict.pop(plain)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _plain(self) -> nn.Module:
        self.conv.weight.requires_grad = True
        return self.conv

    @property
    def peft_rank(self) -> int:
        """The rank of the same update in PEFT's form."""
        first, _ = self._split_kernel()
        return self.r * first * first

    def to_peft(self) -> dict[str, Tensor]:
        """Return the same update as PEFT's two convolutions.

        The rows of B @ A that make up one output channel follow each other, so the channel is one row of B, wide,
        times copies of A on the diagonal.
        """
        if self.conv.groups > 1:
            raise AdapterError(
                "E-ADPT-109",
                "loralib's update of a grouped convolution has no counterpart in PEFT",
                fix="Save it with lora_state_dict, or inject LoRA into the plain layer",
            )
        first, _ = self._split_kernel()
        copies = torch.block_diag(*[self.lora_A.detach()] * first)
        kernel = self.conv.weight.shape[1:]
        ones = (1,) * len(self.conv.kernel_size)
        return {
            "lora_A.weight": copies.view(self.peft_rank, *kernel),
            "lora_B.weight": self.lora_B.detach().reshape(self.conv.out_channels, self.peft_rank, *ones),
        }

    def _copy_from_peft(self, tensors: Mapping[str, Tensor]) -> None:
        rows, columns = self.lora_A.shape
        self.lora_A.copy_(tensors["lora_A.weight"].reshape(self.peft_rank, -1)[:rows, :columns])
        self.lora_B.copy_(tensors["lora_B.weight"].reshape(self.lora_B.shape))


class Conv1d(ConvLoRA, nn.Conv1d):  # type: ignore[override]
    """nn.Conv1d with an update of rank r: A (r, in * k), B (out / groups, r)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        ConvLoRA.__init__(self, nn.Conv1d, *args, **kwargs)


class Conv2d(ConvLoRA, nn.Conv2d):  # type: ignore[override]
    """nn.Conv2d with an update: A (r * k0, in * k1), B (out / groups * k0, r * k0); loralib's where k0 is k1."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        ConvLoRA.__init__(self, nn.Conv2d, *args, **kwargs)


class Conv3d(ConvLoRA, nn.Conv3d):  # type: ignore[override]
    """nn.Conv3d with an update: A (r * k0, in * k1 * k2), B (out / groups * k0, r * k0)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        ConvLoRA.__init__(self, nn.Conv3d, *args, **kwargs)


class _AdaptedConv(MergeableLayer):
    """PEFT's update of a convolution: A (r, in, kernel...) to r channels, then B (out, r / groups, 1...)."""

    weight: Tensor
    bias: Any

    def _setup_adapted(self, r: int, lora_alpha: float, lora_dropout: float) -> None:
        """Create A and B, uninitialised, beside the layer's own parameters."""
        conv: Any = self
        self._setup_lora(r, lora_alpha, lora_dropout, merge_weights=False)
        kernel, ones = conv.kernel_size, (1,) * len(conv.kernel_size)
        self.lora_A = nn.Parameter(self.weight.new_empty((r, conv.in_channels, *kernel)))
        self.lora_B = nn.Parameter(self.weight.new_empty((conv.out_channels, r // conv.groups, *ones)))

    def reset_lora_parameters(self) -> None:
        """Draw A as a convolution draws its weight, and set B to zero: the update starts at zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def check_mergeable(self) -> None:
        """Refuse grouped convolutions."""
        if self.weight.shape[1] != self.lora_A.shape[1]:
            raise AdapterError(
                "E-ADPT-109",
                "PEFT's update of a grouped convolution reads all channels, so it cannot be merged into the groups",
                fix="Keep the adapter unmerged, or leave the layer out with exclude_modules",
            )

    def delta_weight(self, dtype: torch.dtype) -> Tensor:
        """Compute the update in the shape of the kernel and in `dtype`."""
        delta = self.lora_B.to(dtype).flatten(1) @ self.lora_A.to(dtype).flatten(1)
        return delta.view(self.weight.shape) * self.scaling

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution and, beside it, the update."""
        conv: Any = self
        result = conv._conv_forward(x, self.weight, self.bias)
        if not self.adds_update:
            return result
        apply = _CONV[len(conv.kernel_size)]
        branch, padding = self.lora_dropout(x), conv.padding
        if conv.padding_mode != "zeros":
            branch = F.pad(branch, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
            padding = 0
        low = apply(branch, self.lora_A.to(x.dtype), None, conv.stride, padding, conv.dilation)
        update = apply(low, (self.lora_B * self.scaling).to(x.dtype), None, groups=conv.groups)
        return result + update


class AdaptedConv1d(_AdaptedConv, nn.Conv1d):
    """nn.Conv1d with PEFT's update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Conv1d.__init__(self, *args, **kwargs)


class AdaptedConv2d(_AdaptedConv, nn.Conv2d):
    """nn.Conv2d with PEFT's update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Conv2d.__init__(self, *args, **kwargs)


class AdaptedConv3d(_AdaptedConv, nn.Conv3d):
    """nn.Conv3d with PEFT's update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Conv3d.__init__(self, *args, **kwargs)


_ADAPTED: dict[type[nn.Module], Any] = {nn.Conv1d: AdaptedConv1d, nn.Conv2d: AdaptedConv2d, nn.Conv3d: AdaptedConv3d}


def adapted_conv(module: nn.Module, *, r: int, lora_alpha: float, lora_dropout: float) -> MergeableLayer:
    """Build the layer that takes the place of a convolution, on the meta device."""
    conv: Any = module
    layer = _ADAPTED[type(module)](
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    layer._setup_adapted(r, lora_alpha, lora_dropout)
    return layer
