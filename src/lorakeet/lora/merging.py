"""What every LoRA layer shares: the hyperparameters, and adding the update to the weight and taking it away again.

data in: a frozen weight, lora_A, lora_B → out: the same weight, `W` or `W + scaling * B @ A`. It does not know how a
layer shapes its update; each layer says that in `delta_weight`.

loralib adds the update when merging and subtracts it when unmerging; in floating point the two do not cancel, and a
subtraction after the adapter has changed takes away what was never added. Here merging puts the original weight
aside and unmerging brings that very tensor back, so any number of cycles returns the original bits, and
`state_dict()` always holds the original weight, merged or not: what is saved can be loaded in any state.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lorakeet.errors import AdapterError, ConfigError
from lorakeet.lora.update import Update

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


class MergeableLayer(LoRALayer, Update):
    """Merge and unmerge the update of one weight, and keep saved and loaded states right in both conditions."""

    # Class-wide defaults, since torch's constructors call reset_parameters before there is anything of LoRA.
    merged = False
    merge_weights = False
    is_off = False
    """Whether the layer computes as if it had no update."""
    _unmerged_weight: Tensor | None = None
    _replaced: tuple[nn.Module, ...] = ()

    def _setup_lora(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool) -> None:
        """Set what LoRALayer holds, and watch saving and loading. Call it after the base class's constructor."""
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        if r > 0:
            self.scaling = lora_alpha / r
        self.register_parameter("lora_magnitude", None)
        self._merge_after_load = False
        self.register_state_dict_post_hook(_save_unmerged_weight)
        self.register_load_state_dict_post_hook(_merge_again)

    @property
    def adds_update(self) -> bool:
        """Whether the update is computed beside the weight: there is one, it is on, and it is not in the weight already."""
        return self.r > 0 and not self.merged and not self.is_off

    def updates(self, path: str) -> dict[str, Update]:
        """Return the layer's updates by the paths that a checkpoint has for what they belong to; `path` is the layer's."""
        return {path: self}

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
            whole = self._mergeable_weight(weight).to(wide, copy=True).add_(self.delta_weight(wide))
            return self._finished(whole).to(dtype)

    def unmerge(self) -> None:
        """Bring back the weight as it was before `merge`, to the bit."""
        if self._unmerged_weight is not None:
            self.frozen_weight.data = self._unmerged_weight
            self._unmerged_weight = None
        self.merged = False

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

    def _mergeable_weight(self, weight: Tensor) -> Tensor:
        """Return the weight that the update is added to."""
        return weight

    def _finished(self, whole: Tensor) -> Tensor:
        """Return the merged weight from the sum of weight and update."""
        return whole

    def _measure_rows(self) -> None:
        """Take note of a weight that has changed."""

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
        self._measure_rows()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load into the unmerged layer; `_merge_again` restores the condition once the children have loaded too."""
        self._merge_after_load = self.merged
        self.unmerge()
        super()._load_from_state_dict(*args, **kwargs)


def _merge_again(module: nn.Module, _incompatible_keys: Any) -> None:
    """Merge a layer that was merged before its state was loaded, now with what was loaded."""
    assert isinstance(module, MergeableLayer)
    module._measure_rows()
    if module._merge_after_load:
        module._merge_after_load = False
        module.merge()


def _save_unmerged_weight(module: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Put the original weight into a state taken while merged, so that loading it never merges twice."""
    assert isinstance(module, MergeableLayer)
    key = prefix + module._weight_key
    if module._unmerged_weight is not None and key in state_dict:
        state_dict[key] = module._unmerged_weight
