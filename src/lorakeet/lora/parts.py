"""LoRA on a part of a fused layer: on q_proj, where the model keeps q, k and v in one matrix and its checkpoint does not.

data in: the layer, the rows that are the part → out: an update of these rows alone, which is saved and loaded as that of a
layer of the part's name. The layer computes the updates of all its parts with one product for A and one for B.
Legend: I input width, O output width of the whole layer, P rows of the part, R rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakeet.lora.update import Update, draw_pair


class Part(Update):
    """The update of some rows of a layer: A (R, I), B (P, R)."""

    layer: Update
    """The whole layer, as far as a part needs it."""

    def __init__(self, layer: Update, name: str, rows: range, size: tuple[int, int], r: int, scaling: float) -> None:
        """Make the part of `rows` of a layer of `size` (O, I)."""
        super().__init__()
        # Past nn.Module's own __setattr__: the layer holds its parts, not the other way round.
        object.__setattr__(self, "layer", layer)
        self.name, self.start, self.stop, self.r, self.scaling = name, rows.start, rows.stop, r, scaling
        self.num_rows_of_layer, in_features = size
        self.lora_A = nn.Parameter(torch.empty(r, in_features, device="meta"))
        self.lora_B = nn.Parameter(torch.empty(len(rows), r, device="meta"))
        self.register_parameter("lora_magnitude", None)

    @property
    def merged(self) -> bool:  # type: ignore[override]
        """Whether the whole layer is merged."""
        return self.layer.merged

    def merge(self) -> None:
        """Merge the whole layer."""
        self.layer.merge()

    def unmerge(self) -> None:
        """Unmerge the whole layer."""
        self.layer.unmerge()

    def base_rows(self, dtype: torch.dtype) -> Tensor:
        """Return the part's rows of the frozen weight, (P, I)."""
        return self.layer.base_rows(dtype)[self.start : self.stop]

    def replace_base_rows(self, rows_PI: Tensor) -> None:
        """Put other rows into a copy of the frozen weight."""
        weight_OI = self.layer.base_rows(rows_PI.dtype).clone()
        weight_OI[self.start : self.stop] = rows_PI
        self.layer.replace_base_rows(weight_OI)

    def reset_lora_parameters(self) -> None:
        """Draw A as nn.Linear draws its weight, and set B to zero: the update starts at zero."""
        draw_pair(self)

    def wide_B(self) -> Tensor:
        """Return B with its scale, among zeros for the layer's other rows, (O, R)."""
        return F.pad(self.lora_B * self.scaling, (0, 0, self.start, self.num_rows_of_layer - self.stop))
