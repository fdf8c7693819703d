"""loralib's layers, with its signatures, parameter names, shapes, initialisation and numbers.

data in: the activations of the layer that is replaced → out: the same, computed with `W + scaling * B @ A`.
A layer freezes its `weight` only; which other parameters train is decided by `mark_only_lora_as_trainable`.
Legend: T tokens (any leading axes), I input width, O output width, R rank, N number of embeddings.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakeet.errors import ConfigError
from lorakeet.lora.conv import Conv1d as Conv1d
from lorakeet.lora.conv import Conv2d as Conv2d
from lorakeet.lora.conv import Conv3d as Conv3d
from lorakeet.lora.conv import ConvLoRA as ConvLoRA
from lorakeet.lora.merging import LoRALayer as LoRALayer
from lorakeet.lora.merging import MergeableLayer
from lorakeet.lora.parts import Part
from lorakeet.lora.update import Update, draw_pair, row_lengths
from lorakeet.ops.lora_linear import add_lora, is_exact


class LinearLoRA(MergeableLayer):
    """The update of a linear layer whose weight is (out, in), or (in, out) with `fan_in_fan_out`.

    A layer that is several layers of the checkpoint in one matrix has `parts`, each with an update of its own rows.
    With DoRA the rows of weight and update together are set to trained lengths.
    """

    weight: Tensor
    bias: Any
    fan_in_fan_out = False
    parts: nn.ModuleDict | None
    base_lengths_O: Tensor | None
    """The lengths of the frozen weight's rows, with DoRA."""

    def _setup_lora(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool) -> None:
        super()._setup_lora(r, lora_alpha, lora_dropout, merge_weights)
        self.parts = None
        self.use_dora = False
        self.register_buffer("base_lengths_O", None, persistent=False)

    def _add_lora_parameters(self, in_features: int, out_features: int) -> None:
        """Create A (r, in) and B (out, r), uninitialised, and freeze the weight."""
        weight = self.frozen_weight
        self.lora_A = nn.Parameter(weight.new_empty((self.r, in_features)))
        self.lora_B = nn.Parameter(weight.new_empty((out_features, self.r)))
        weight.requires_grad = False

    def divide(self, parts: Sequence[Part]) -> None:
        """Put the updates of parts, in the order of their rows, in place of the layer's own."""
        del self.lora_A, self.lora_B
        self.parts = nn.ModuleDict({part.name: part for part in parts})

    def updates(self, path: str) -> dict[str, Update]:
        """Return the layer's updates by the checkpoint's paths: those of its parts if it has any."""
        if self.parts is None:
            return {path: self}
        owner = path.rpartition(".")[0]
        return {f"{owner}.{name}" if owner else name: part for name, part in self._parts()}

    def _parts(self) -> list[tuple[str, Part]]:
        assert self.parts is not None
        return [(name, part) for name, part in self.parts.items() if isinstance(part, Part)]

    def _new_lora_parameters(self, dtype: torch.dtype, device: torch.device) -> None:
        if self.parts is None:
            super()._new_lora_parameters(dtype, device)
        else:
            for _, part in self._parts():
                part._new_lora_parameters(dtype, device)

    def reset_lora_parameters(self) -> None:
        """Draw A as nn.Linear draws its weight, and set B to zero: the update starts at zero."""
        draw_pair(self)

    def pair(self) -> tuple[Tensor, Tensor, float]:
        """Return A (r, in), B (out, r) and the scale of the whole update; of parts, A stacked and B block by block."""
        if self.parts is None:
            return self.lora_A, self.lora_B, self.scaling
        parts = [part for _, part in self._parts()]
        return torch.cat([part.lora_A for part in parts]), torch.cat([part.wide_B() for part in parts], dim=1), 1.0

    def delta_weight(self, dtype: torch.dtype) -> Tensor:
        """Compute `scaling * B @ A` in the shape of the weight and in `dtype`."""
        lora_A, lora_B, scaling = self.pair()
        return self._as_stored((lora_B.to(dtype) @ lora_A.to(dtype)).mul_(scaling))

    def _as_stored(self, matrix_OI: Tensor) -> Tensor:
        """Turn (out, in) into the layout of the weight, and back."""
        return matrix_OI.transpose(0, 1) if self.fan_in_fan_out else matrix_OI

    def base_rows(self, dtype: torch.dtype) -> Tensor:
        """Return the frozen weight, unmerged, (out, in)."""
        weight = self.frozen_weight.data if self._unmerged_weight is None else self._unmerged_weight
        return self._as_stored(weight).to(dtype)

    def replace_base_rows(self, rows_OI: Tensor) -> None:
        """Put another frozen weight, (out, in)."""
        weight = self.frozen_weight
        weight.data = self._as_stored(rows_OI.to(weight.dtype)).contiguous()

    def base_result(self, x: Tensor) -> Tensor:
        """Apply the layer without its update."""
        return F.linear(x, self._as_stored(self.weight), self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., in) → (..., out)."""
        result = self.base_result(x)
        if not self.adds_update:
            return result
        if self.use_dora:
            return self._with_lengths(x, result)
        return add_lora(result, self.lora_dropout(x), *self.pair())

    def start_dora(self) -> None:
        """Let the lengths of the adapted rows train, from what they are."""
        for update in self.updates("").values():
            update.add_magnitude()
        self.use_dora = True
        self._measure_rows()

    def _measure_rows(self) -> None:
        """Note the lengths of the frozen weight's rows: whenever the weight has changed."""
        if self.use_dora and not self.frozen_weight.is_meta:
            first = next(iter(self.updates("").values()))
            self.base_lengths_O = row_lengths(self.base_rows(torch.promote_types(first.lora_B.dtype, torch.float32)))

    def _with_lengths(self, x: Tensor, result: Tensor) -> Tensor:
        """Give every row of weight and update together its trained length.

        Dropout acts on all that is scaled, as in PEFT. Source: Liu et al. 2024, arXiv:2402.09353.
        """
        pair, bias = self.pair(), self.bias
        result = result if bias is None else result - bias
        branch, rest = x, None
        if self.training and isinstance(self.lora_dropout, nn.Dropout):
            branch = self.lora_dropout(x)
            dropped = self._base_product(branch)
            rest, result = result - dropped, dropped
        factor_O = self._length_factor(x.dtype, *pair)
        wide = add_lora(result, branch, *pair).to(factor_O.dtype) * factor_O
        for term in (rest, bias):
            wide = wide if term is None else wide + term
        return wide.to(x.dtype)

    def _base_product(self, x: Tensor) -> Tensor:
        result = self.base_result(x)
        return result if self.bias is None else result - self.bias

    def _length_factor(self, dtype: torch.dtype, lora_A_RI: Tensor, lora_B_OR: Tensor, scaling: float) -> Tensor:
        """Return the trained length of each row over its present one, (out,); gradients reach the trained one alone.

        The present length comes from |W|² + 2 W·BA + |BA|², so that W + BA is never formed.
        """
        assert self.base_lengths_O is not None
        with torch.no_grad():
            wide = self.base_lengths_O.dtype
            A_RI, B_OR = lora_A_RI.to(wide), lora_B_OR.to(wide) * scaling
            cross_OR = self._base_product(lora_A_RI.to(dtype)).to(wide).T
            squares_O = self.base_lengths_O.square() + ((2 * cross_OR + B_OR @ (A_RI @ A_RI.T)) * B_OR).sum(1)
            lengths_O = squares_O.clamp(min=torch.finfo(wide).tiny).sqrt()
        return self._lengths(lengths_O) / lengths_O

    def _lengths(self, present_O: Tensor) -> Tensor:
        """Return the trained length of each row; of rows that have none, the present one."""
        if self.parts is None:
            assert self.lora_magnitude is not None
            return self.lora_magnitude
        pieces, at = [], 0
        for _, part in self._parts():
            assert part.lora_magnitude is not None
            pieces += [present_O[at : part.start], part.lora_magnitude]
            at = part.stop
        return torch.cat([*pieces, present_O[at:]])

    def _finished(self, whole: Tensor) -> Tensor:
        """Give the rows of a merged weight their trained lengths."""
        if not self.use_dora:
            return whole
        whole_OI = self._as_stored(whole)
        present_O = row_lengths(whole_OI)
        return self._as_stored(whole_OI * (self._lengths(present_O) / present_O)[:, None])

    def _plain(self) -> nn.Module:
        out_features, in_features = self._as_stored(self.weight).shape
        plain = nn.Linear(in_features, out_features, bias=self.bias is not None, device="meta")
        weight = self.frozen_weight
        plain.weight = nn.Parameter(weight.data.transpose(0, 1).contiguous()) if self.fan_in_fan_out else weight
        plain.weight.requires_grad = True
        if self.bias is not None:
            plain.bias = self.bias
        return plain.train(self.training)

    def reset_parameters(self) -> None:
        """Draw weight and bias as nn.Linear does, then A and B."""
        self.unmerge()
        # nn.Linear reads the fan-in off the shape, so it must see (out, in).
        self.weight.data = self._as_stored(self.weight.data)
        nn.Linear.reset_parameters(self)  # type: ignore[arg-type]
        self.weight.data = self._as_stored(self.weight.data)
        # nn.Linear's constructor calls this before A and B exist.
        if self.r > 0:
            self.reset_lora_parameters()

    def _draw_and_store(self, fan_in_fan_out: bool) -> None:
        """Draw everything, as the last step of a constructor, and store the weight as (in, out) if that is asked for."""
        # loralib draws the weight a second time; so do we, for the same numbers from the same seed.
        self.reset_parameters()
        self.fan_in_fan_out = fan_in_fan_out
        if fan_in_fan_out:
            self.weight.data = self.weight.data.transpose(0, 1).contiguous()


class Linear(LinearLoRA, nn.Linear):
    """nn.Linear with an update of rank r: A (r, in_features), B (out_features, r).

    `h = x Wᵀ + bias + (lora_alpha / r) · dropout(x) Aᵀ Bᵀ` (Hu et al. 2021, arXiv:2106.09685, equation 3). A is drawn
    as nn.Linear draws weights and B is zero, so training starts from the pretrained layer. `lora_alpha` only scales
    the update: twice the alpha is about twice the learning rate, and keeping it while r changes keeps the scale.
    `lora_dropout` acts on the input of the update alone, while training. `fan_in_fan_out` stores the weight as
    (in_features, out_features), as GPT-2's Conv1D does. `merge_weights` merges on eval() and unmerges on train().
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
            self._add_lora_parameters(in_features, out_features)
        self._draw_and_store(fan_in_fan_out)


class MergedLinear(LinearLoRA, nn.Linear):
    """Several linear layers in one matrix, such as q, k and v, of which some get an update of their own.

    The out_features are cut into `len(enable_lora)` slices; slice i has its own pair where `enable_lora[i]`:
    A (r * n_on, in_features) holds the pairs' A one under the other, B (out_features / len * n_on, r) their B. Slices
    have equal sizes, as in loralib, unless `slice_sizes` gives them: grouped-query attention has small k and v.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        enable_lora: Sequence[bool] = (False,),
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        slice_sizes: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.enable_lora = list(enable_lora)
        self.slice_sizes = _slices(out_features, self.enable_lora, slice_sizes)
        if r > 0 and not any(self.enable_lora):
            raise ConfigError(
                "E-CFG-111",
                f"enable_lora is {self.enable_lora}, so no slice would have an update, but r is {r}",
                place="MergedLinear",
                fix="Set an entry to True, or r to 0 for the plain layer",
            )
        nn.Linear.__init__(self, in_features, out_features, **kwargs)
        self._setup_lora(r, lora_alpha, lora_dropout, merge_weights)
        if r > 0:
            self._add_lora_parameters(in_features, out_features)
            num_on, rows = sum(map(bool, self.enable_lora)), sum(self._enabled_sizes)
            self.lora_A = nn.Parameter(self.weight.new_empty((r * num_on, in_features)))
            self.lora_B = nn.Parameter(self.weight.new_empty((rows, r)))
        self._draw_and_store(fan_in_fan_out)

    @property
    def _enabled_sizes(self) -> list[int]:
        """The sizes of the slices that have an update."""
        return [size for size, on in zip(self.slice_sizes, self.enable_lora, strict=True) if on]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., in) → (..., out)."""
        result = F.linear(x, self._as_stored(self.weight), self.bias)
        if not self.adds_update:
            return result
        if not is_exact(result, self.lora_A):
            return add_lora(result, self.lora_dropout(x), *self.pair())
        # loralib multiplies with the whole update; in float32 so do we, for its numbers to the bit.
        result += self.lora_dropout(x) @ self._delta_OI(self.lora_A.dtype).transpose(0, 1) * self.scaling
        return result

    def delta_weight(self, dtype: torch.dtype) -> Tensor:
        """Compute `scaling * B_i @ A_i` in the rows of each enabled slice, zero elsewhere."""
        return self._as_stored(self._delta_OI(dtype)) * self.scaling

    def _delta_OI(self, dtype: torch.dtype) -> Tensor:
        """Compute the unscaled update, (out, in)."""
        lora_A, lora_B = self.lora_A.to(dtype), self.lora_B.to(dtype)
        sizes = self._enabled_sizes
        if len(set(sizes)) == 1:
            # A grouped convolution over width 1 is loralib's batched B_i @ A_i.
            rows = F.conv1d(lora_A.unsqueeze(0), lora_B.unsqueeze(-1), groups=len(sizes)).squeeze(0)
        else:
            pairs = zip(lora_B.split(sizes), lora_A.split(self.r), strict=True)
            rows = torch.cat([slice_B @ slice_A for slice_B, slice_A in pairs])
        return self._spread(list(rows.split(sizes)))

    def _spread(self, blocks: list[Tensor]) -> Tensor:
        """Put one block of rows into each enabled slice, and zeros into the others."""
        rest = iter(blocks)
        width = blocks[0].shape[1]
        return torch.cat(
            [
                next(rest) if on else blocks[0].new_zeros((size, width))
                for size, on in zip(self.slice_sizes, self.enable_lora, strict=True)
            ]
        )

    def pair(self) -> tuple[Tensor, Tensor, float]:
        """Return A (r * n_on, in), B (out, r * n_on) and the scale of the whole update."""
        return self.lora_A, self._wide_B(), self.scaling

    def _wide_B(self) -> Tensor:
        """Return B as (out, r * n_on), so that `wide_B @ A` is the whole update."""
        blocks = self.lora_B.split(self._enabled_sizes)
        last = len(blocks) - 1
        return self._spread([F.pad(block, (at * self.r, (last - at) * self.r)) for at, block in enumerate(blocks)])

    @property
    def peft_rank(self) -> int:
        """The rank of the same update in PEFT's form: the pairs side by side."""
        return self.lora_A.shape[0]

    def to_peft(self) -> dict[str, Tensor]:
        """Return the update as the tensors of PEFT's Linear, of rank r * n_on."""
        return {"lora_A.weight": self.lora_A.detach(), "lora_B.weight": self._wide_B().detach()}

    def _copy_from_peft(self, tensors: Any) -> None:
        self.lora_A.copy_(tensors["lora_A.weight"])
        slices = zip(tensors["lora_B.weight"].split(self.slice_sizes), self.enable_lora, strict=True)
        blocks = [block for block, on in slices if on]
        self.lora_B.copy_(torch.cat([block[:, at * self.r : (at + 1) * self.r] for at, block in enumerate(blocks)]))


class Embedding(MergeableLayer, nn.Embedding):
    """nn.Embedding with an update of rank r: A (r, num_embeddings), B (embedding_dim, r).

    Here A starts at zero and B is drawn, the other way round than in Linear. That is loralib's choice and kept: a row
    of A belongs to one token and trains only where the token occurs, so a zero A leaves tokens that never occur
    exactly as they were, and B, which all tokens share, gives the first gradients of A something to act on.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        r: int = 0,
        lora_alpha: float = 1,
        merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, **kwargs)
        self._setup_lora(r, lora_alpha, 0.0, merge_weights)
        if r > 0:
            self.lora_A = nn.Parameter(self.weight.new_empty((r, num_embeddings)))
            self.lora_B = nn.Parameter(self.weight.new_empty((embedding_dim, r)))
            self.weight.requires_grad = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight as nn.Embedding does, then A and B."""
        self.unmerge()
        nn.Embedding.reset_parameters(self)
        if self.r > 0:
            self.reset_lora_parameters()

    def reset_lora_parameters(self) -> None:
        """Set A to zero and draw B: the update starts at zero."""
        nn.init.zeros_(self.lora_A)
        nn.init.normal_(self.lora_B)

    def delta_weight(self, dtype: torch.dtype) -> Tensor:
        """Compute `scaling * (B @ A)ᵀ`, (num_embeddings, embedding_dim)."""
        return (self.lora_B.to(dtype) @ self.lora_A.to(dtype)).transpose(0, 1) * self.scaling

    def forward(self, x: Tensor) -> Tensor:
        """Look the indices up: (...) → (..., embedding_dim)."""
        if self.r == 0 or self.is_off:
            return nn.Embedding.forward(self, x)
        # With max_norm a lookup shortens rows of the weight it is given, so only the frozen rows may pass through it:
        # a merged row has been shortened before the update was added.
        max_norm = None if self.merged else self.max_norm
        result = F.embedding(x, self.weight, self.padding_idx, max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse)
        if self.merged:
            return result
        low_TR = F.embedding(
            x, self.lora_A.transpose(0, 1), self.padding_idx, None, self.norm_type, self.scale_grad_by_freq, self.sparse
        )
        result += ((low_TR @ self.lora_B.transpose(0, 1)) * self.scaling).to(result.dtype)
        return result

    def _mergeable_weight(self, weight: Tensor) -> Tensor:
        """Return the weight with every row shortened to max_norm, as a lookup would."""
        if self.max_norm is None:
            return weight
        every_row = torch.arange(self.num_embeddings, device=weight.device)
        return torch.embedding_renorm_(weight.detach().clone(), every_row, self.max_norm, self.norm_type)

    def _plain(self) -> nn.Module:
        plain = nn.Embedding(
            self.num_embeddings,
            self.embedding_dim,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
            device="meta",
        )
        plain.weight = self.frozen_weight
        plain.weight.requires_grad = True
        return plain.train(self.training)

    def to_peft(self) -> dict[str, Tensor]:
        """Return the update as the tensors of PEFT's Embedding."""
        return {"lora_embedding_A": self.lora_A.detach(), "lora_embedding_B": self.lora_B.detach()}

    def _copy_from_peft(self, tensors: Any) -> None:
        self.lora_A.copy_(tensors["lora_embedding_A"])
        self.lora_B.copy_(tensors["lora_embedding_B"])


def _slices(out_features: int, enable_lora: list[bool], sizes: Sequence[int] | None) -> list[int]:
    """Return the sizes of the slices, checked."""
    count = len(enable_lora)
    if sizes is None and count > 0 and out_features % count == 0:
        return [out_features // count] * count
    if sizes is not None and len(sizes) == count and sum(sizes) == out_features and min(sizes, default=0) > 0:
        return list(sizes)
    given = f"slice_sizes {list(sizes)}" if sizes is not None else f"{count} equal slices"
    raise ConfigError(
        "E-CFG-112",
        f"{given} do not make up the {out_features} out_features with one entry of enable_lora each",
        place="MergedLinear",
        fix="Pass slice_sizes, for example [q_size, kv_size, kv_size]",
    )
