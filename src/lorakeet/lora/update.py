"""One trained update, `scaling * B @ A`, of a weight or of some rows of it, and its form in PEFT's files.

data in: tensors under the names that PEFT gives them within a layer → out: lora_A and lora_B; and back. It does not
know how the update is computed or merged; the layers that have one say that.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorakeet.errors import AdapterError


class Update(nn.Module):
    """A pair A and B with its rank and scale."""

    r = 0
    scaling: float
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_magnitude: nn.Parameter | None
    """DoRA: the length that each row of the weight has together with the update."""
    merged: bool
    initial_pair: tuple[Tensor, Tensor] | None = None
    """A and B before training, where the frozen weight lacks what they hold (PiSSA)."""
    rounding_pair: tuple[Tensor, Tensor] | None = None
    """A and B before training, where they began with what rounding took from the weight (LoftQ)."""

    @abstractmethod
    def merge(self) -> None:
        """Add the update to the weight."""

    @abstractmethod
    def unmerge(self) -> None:
        """Take the update out of the weight."""

    def base_rows(self, dtype: torch.dtype) -> Tensor:
        """Return the frozen weight's rows that the update belongs to, unmerged, (out, in); linear layers have such."""
        raise NotImplementedError

    def replace_base_rows(self, rows_OI: Tensor) -> None:
        """Put other rows into the frozen weight in their place."""
        raise NotImplementedError

    @abstractmethod
    def reset_lora_parameters(self) -> None:
        """Draw lora_A and lora_B afresh, so that the update is zero."""

    def _new_lora_parameters(self, dtype: torch.dtype, device: torch.device) -> None:
        """Put fresh A and B of the same shapes, in `dtype` on `device`."""
        self.lora_A = nn.Parameter(torch.empty(self.lora_A.shape, dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.empty(self.lora_B.shape, dtype=dtype, device=device))
        self.reset_lora_parameters()

    def add_magnitude(self) -> None:
        """Let the length of each row train (DoRA), from what it is at present; a weight still on disk brings it later."""
        with torch.no_grad():
            rows = self.base_rows(self.lora_B.dtype)
            if rows.is_meta:
                lengths = self.lora_B.new_ones(len(self.lora_B))
            else:
                lengths = row_lengths(rows + self.scaling * self.lora_B @ self.lora_A)
        self.lora_magnitude = nn.Parameter(lengths)

    def require_own_weight(self) -> None:
        """Raise an AdapterError, E-ADPT-113, if the weight lacks what A and B began with."""
        if self.initial_pair is not None:
            raise AdapterError(
                "E-ADPT-113",
                "the base model is not in memory any more: PiSSA has moved a part of it into the adapter",
                fix="Load the base model again",
            )

    @property
    def peft_rank(self) -> int:
        """The rank of the same update in PEFT's form, A then B."""
        return self.r if self.initial_pair is None else 2 * self.r

    def to_peft(self) -> dict[str, Tensor]:
        """Return the update as the tensors of PEFT's layer, by their names within it.

        It is the update of the weight as the layer found it: with an initial pair, what has become of that pair.
        """
        lora_A, lora_B = self.lora_A.detach(), self.lora_B.detach()
        if self.initial_pair is not None:
            first_A, first_B = self.initial_pair
            lora_A, lora_B = torch.cat([lora_A, first_A]), torch.cat([lora_B, -first_B], dim=1)
        tensors = {"lora_A.weight": lora_A, "lora_B.weight": lora_B}
        return tensors if self.lora_magnitude is None else {**tensors, "lora_magnitude_vector": self.lora_magnitude.detach()}

    def from_peft(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the update from tensors of the names and shapes that `to_peft` returns.

        Raises:
            AdapterError: E-ADPT-109 if the layer's own form cannot express them.
        """
        merged = self.merged
        self.unmerge()
        with torch.no_grad():
            self._copy_from_peft(tensors)
        exact = all(torch.equal(kept, tensors[name].to(kept)) for name, kept in self.to_peft().items())
        if merged:
            self.merge()
        if not exact:
            raise AdapterError(
                "E-ADPT-109",
                f"a {type(self).__name__} cannot hold this update: it has parts that the layer does not train",
                fix="Load it into a plain layer instead, which load_adapter gives LoRA",
            )

    def _copy_from_peft(self, tensors: Mapping[str, Any]) -> None:
        """Copy into lora_A and lora_B; a layer with another form than PEFT's turns them round here."""
        self.lora_A.copy_(tensors["lora_A.weight"][: self.r])
        self.lora_B.copy_(tensors["lora_B.weight"][:, : self.r])
        if self.lora_magnitude is not None:
            self.lora_magnitude.copy_(tensors["lora_magnitude_vector"])


def row_lengths(weight_OI: Tensor) -> Tensor:
    """Return the Euclidean length of each row; never 0, so that it can be divided by."""
    return torch.linalg.vector_norm(weight_OI, dim=1).clamp(min=torch.finfo(weight_OI.dtype).tiny)


def draw_pair(update: Update) -> None:
    """Draw A as nn.Linear draws its weight, and set B to zero: the update starts at zero."""
    nn.init.kaiming_uniform_(update.lora_A, a=math.sqrt(5))
    nn.init.zeros_(update.lora_B)
