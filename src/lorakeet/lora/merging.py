"""What every LoRA layer shares: the hyperparameters, and adding the update to the weight and taking it away again.

data in: a frozen weight, lora_A, lora_B → out: the same weight, `W` or `W + scaling * B @ A`. It does not know how a
layer shapes its update; each layer says that in `delta_weight`.

loralib adds the update when merging and subtracts it when unmerging; in floating point the two do not cancel, and a
subtraction after the adapter has changed takes away what was never added. Here merging puts the original weight
aside and unmerging brings that very tensor back, so any number of cycles returns the original bits, and
`state_dict()` always holds the original weight, merged or not: what is saved can be loaded in any state.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorakeet.errors import AdapterError, ConfigError

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class LoRALayer:
    """Hold the hyperparameters of a LoRA layer; loralib's mix-in, with its signature.

    The trained update of a weight `W` is `scaling * B @ A`, with `scaling = lora_alpha / r`. `lora_alpha` is only a
    constant factor: it makes one learning rate usable for several ranks. `r = 0` is the plain layer.
    Source: Hu et al. 2021, arXiv:2106.09685.
    """

    def __init__(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool) -> None:
        if r < 0:
            raise ConfigError("E-CFG-37", f"r is {r}; 0 is the plain layer", place=type(self).__name__, fix="Use r >= 0")
        self.r = r
        self.lora_alpha = lora_alpha
        # Always a module: loralib's lambda for 0 cannot be pickled.
        self.lora_dropout: nn.Module = nn.Dropout(p=lora_dropout) if lora_dropout > 0.0 else nn.Identity()
        self.merged = False
        self.merge_weights = merge_weights


class MergeableLayer(LoRALayer, nn.Module):
    """Merge and unmerge the update of one weight, and keep saved and loaded states right in both conditions."""

    scaling: float
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    # Class-wide defaults, since torch's constructors call reset_parameters before there is anything of LoRA.
    r = 0
    merged = False
    merge_weights = False
    initial_pair: tuple[Tensor, Tensor] | None = None
    """A and B before training, where the frozen weight lacks what they hold (PiSSA)."""
    _unmerged_weight: Tensor | None = None
    _replaced: tuple[nn.Module, ...] = ()

    def _setup_lora(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool) -> None:
        """Set what LoRALayer holds, and watch saving and loading. Call it after the base class's constructor."""
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        if r > 0:
            self.scaling = lora_alpha / r
        self._merge_after_load = False
        self.register_state_dict_post_hook(_save_unmerged_weight)
        self.register_load_state_dict_post_hook(_merge_again)

    @property
    def _weight_owner(self) -> nn.Module:
        """The module that holds the weight the update belongs to."""
        return self

    _weight_name = "weight"
    _weight_key = "weight"

    @property
    def frozen_weight(self) -> nn.Parameter:
        """The parameter that the update belongs to."""
        weight = self._weight_owner._parameters[self._weight_name]
        assert weight is not None
        return weight

    @abstractmethod
    def delta_weight(self, dtype: torch.dtype) -> Tensor:
        """Compute the update `scaling * B @ A` in the shape of the weight and in `dtype`."""

    @abstractmethod
    def reset_lora_parameters(self) -> None:
        """Draw lora_A and lora_B afresh, so that the update is zero."""

    def check_mergeable(self) -> None:
        """Raise an AdapterError, E-ADPT-109, if the update has no place in the weight."""

    def merge(self) -> None:
        """Add the update to the weight, once; the original weight is put aside."""
        if self.merged:
            return
        if self.r > 0:
            weight = self.frozen_weight
            merged = self.merged_weight(weight.dtype)
            self._unmerged_weight = weight.data
            weight.data = merged
        self.merged = True

    def merged_weight(self, dtype: torch.dtype) -> Tensor:
        """Return a copy of the weight with the update added in float32 or wider, rounded once to `dtype`.

        Raises: AdapterError, as `check_mergeable`.
        """
        self.check_mergeable()
        weight = self.frozen_weight if self._unmerged_weight is None else self._unmerged_weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        # Out of inference mode too: a weight made there could not be trained through later.
        with torch.inference_mode(False), torch.no_grad():
            return self._mergeable_weight(weight).to(wide, copy=True).add_(self.delta_weight(wide)).to(dtype)

    def unmerge(self) -> None:
        """Bring back the weight as it was before `merge`, to the bit."""
        if self._unmerged_weight is not None:
            self.frozen_weight.data = self._unmerged_weight
            self._unmerged_weight = None
        self.merged = False

    def require_own_weight(self) -> None:
        """Raise an AdapterError, E-ADPT-113, if the weight lacks what A and B began with."""
        if self.initial_pair is not None:
            raise AdapterError(
                "E-ADPT-113",
                "the base model is not in memory any more: PiSSA has moved a part of it into the adapter",
                fix="Load the base model again",
            )

    def forget_unmerged(self) -> None:
        """Make the merged weight the weight for good."""
        self._unmerged_weight = None

    def adopt(self, module: nn.Module, scaling: float) -> None:
        """Take over the parameters, hooks and mode of an existing layer, and draw a float32 A and B beside them.

        `module` is kept without its parameters, so that `release` can give the very object back.
        """
        for name, parameter in module._parameters.items():
            self._parameters[name] = parameter
            module._parameters[name] = None
        for name in _HOOKS:
            getattr(self, name).update(getattr(module, name))
        self._replaced = (module,)
        # Adapters are float32 whatever the base is: the small updates of training would round away in bfloat16.
        # A base that is still on disk has no device; its adapter is in memory all the same.
        device = self.frozen_weight.device
        self._new_lora_parameters(torch.float32, device if device.type != "meta" else torch.device("cpu"))
        self.scaling = scaling
        nn.Module.train(self, module.training)

    def release(self) -> nn.Module:
        """Return the layer that was adopted, with the parameters as they are now and without LoRA."""
        if not self._replaced:
            return self._plain()
        (module,) = self._replaced
        for name in module._parameters:
            module._parameters[name] = self._parameters[name]
        return module.train(self.training)

    def _plain(self) -> nn.Module:
        """Build the plain layer that a layer made by hand extends, with its parameters."""
        raise AdapterError("E-ADPT-111", f"a {type(self).__name__} extends no plain layer that could take its place")

    def _new_lora_parameters(self, dtype: torch.dtype, device: torch.device) -> None:
        """Put fresh A and B of the same shapes, in `dtype` on `device`."""
        self.lora_A = nn.Parameter(torch.empty(self.lora_A.shape, dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.empty(self.lora_B.shape, dtype=dtype, device=device))
        self.reset_lora_parameters()

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
        return {"lora_A.weight": lora_A, "lora_B.weight": lora_B}

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

    def _copy_from_peft(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy into lora_A and lora_B; a layer with another form than PEFT's turns them round here."""
        self.lora_A.copy_(tensors["lora_A.weight"][: self.r])
        self.lora_B.copy_(tensors["lora_B.weight"][:, : self.r])

    def _mergeable_weight(self, weight: Tensor) -> Tensor:
        """Return the weight that the update is added to."""
        return weight

    def extra_repr(self) -> str:
        """Describe the layer where a model is printed: as the one it replaces, and with its LoRA."""
        plain = super().extra_repr()
        if self.r == 0:
            return plain
        dropout = getattr(self.lora_dropout, "p", 0.0)
        lora = f"r={self.r}, lora_alpha={self.lora_alpha:g}, lora_dropout={dropout:g}"
        return ", ".join(part for part in (plain, lora, "merged" if self.merged else "") if part)

    def train(self, mode: bool = True) -> Any:
        """Set the mode; with `merge_weights`, loralib's flow: eval() merges, train() unmerges."""
        super().train(mode)
        if self.merge_weights:
            self.unmerge() if mode else self.merge()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast the weight that was put aside along with the rest."""
        super()._apply(fn, recurse)
        if self._unmerged_weight is not None:
            with torch.no_grad():
                self._unmerged_weight = fn(self._unmerged_weight)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load into the unmerged layer; `_merge_again` restores the condition once the children have loaded too."""
        self._merge_after_load = self.merged
        self.unmerge()
        super()._load_from_state_dict(*args, **kwargs)


def _merge_again(module: nn.Module, _incompatible_keys: Any) -> None:
    """Merge a layer that was merged before its state was loaded, now with what was loaded."""
    assert isinstance(module, MergeableLayer)
    if module._merge_after_load:
        module._merge_after_load = False
        module.merge()


def _save_unmerged_weight(module: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Put the original weight into a state taken while merged, so that loading it never merges twice."""
    assert isinstance(module, MergeableLayer)
    key = prefix + module._weight_key
    if module._unmerged_weight is not None and key in state_dict:
        state_dict[key] = module._unmerged_weight
