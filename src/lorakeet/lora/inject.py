"""LoRA onto an existing model, in place, and off it again.

data in: any nn.Module and a LoraConfig → out: the same module, whose named layers are LoRA layers that hold the very
weights of the layers they replace. It does not train, save or load.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError, ConfigError
from lorakeet.lora.layers import Linear
from lorakeet.lora.merging import MergeableLayer
from lorakeet.lora.targets import Target, find_targets

_SUPPORTED: tuple[type[nn.Module], ...] = (nn.Linear,)


@dataclass
class Injection:
    """What `inject` did to a model, for `remove` and `save_adapter`."""

    config: LoraConfig
    trainable: dict[str, bool] = field(default_factory=dict)
    """requires_grad of every parameter, by its name before."""


def inject(model: nn.Module, config: LoraConfig) -> nn.Module:
    """Put LoRA onto the layers that `config` names, in place, and freeze everything else.

    The layers keep their weight and bias objects. The adapters are float32, drawn from torch's global generator, and
    start as an update of zero, so the outputs stay as they were. Merging is explicit: eval() does not merge.

    Raises:
        ConfigError: E-CFG-42 where a target matches nothing.
    """
    if injection_of(model) is not None:
        raise ConfigError(
            "E-CFG-101", "the model has LoRA already", place="inject", fix="Call lorakeet.remove(model) first"
        )
    targets = find_targets(model, config, _SUPPORTED)
    injection = Injection(config, {name: parameter.requires_grad for name, parameter in model.named_parameters()})
    model.requires_grad_(False)
    for target in targets:
        layer = _wrap(model.get_submodule(target.path), target, config)
        model.set_submodule(target.path, layer)
    object.__setattr__(model, "_lorakeet_injection", injection)
    return model


def injection_of(model: nn.Module) -> Injection | None:
    """Return what `inject` noted on the model, or None."""
    return getattr(model, "_lorakeet_injection", None)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, MergeableLayer]]:
    """Walk over the LoRA layers of a model, with their paths."""
    for path, module in model.named_modules():
        if isinstance(module, MergeableLayer) and module.r > 0:
            yield path, module


def adapter_tensors(model: nn.Module, config: LoraConfig) -> dict[str, Tensor]:
    """Return the tensors that make up the adapter, live, under PEFT's names without its prefix."""
    tensors: dict[str, Tensor] = {}
    for path, layer in lora_layers(model):
        tensors[f"{path}.lora_A.weight"] = layer.lora_A
        tensors[f"{path}.lora_B.weight"] = layer.lora_B
    return tensors


def remove(model: nn.Module) -> nn.Module:
    """Take LoRA off again, in place: the layers, weights and requires_grad from before `inject`."""
    return _take_off(model, keep_update=False)


def merge_and_unload(model: nn.Module) -> nn.Module:
    """Add every update to its weight for good, and put the plain layers back, in place."""
    return _take_off(model, keep_update=True)


def _take_off(model: nn.Module, *, keep_update: bool) -> nn.Module:
    """Replace every LoRA layer by the plain layer, with or without the update in its weight."""
    layers = list(lora_layers(model))
    if not layers:
        raise AdapterError("E-ADPT-69", "the model has no LoRA layer; it is already merged or never had one")
    for path, layer in layers:
        if keep_update:
            layer.merge()
            layer.forget_unmerged()
        else:
            layer.unmerge()
        model.set_submodule(path, layer.release())
    injection = injection_of(model)
    if injection is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = injection.trainable[name]
        object.__delattr__(model, "_lorakeet_injection")
    return model


def _wrap(module: nn.Module, target: Target, config: LoraConfig) -> MergeableLayer:
    """Build the LoRA layer that takes the place of `module`."""
    build = _BUILDERS.get(type(module))
    if build is None:
        raise ConfigError(
            "E-CFG-102",
            f"{target.path} is a {type(module).__name__}, which LoRA cannot go onto",
            place="target_modules",
        )
    layer = build(module, target, config)
    layer.adopt(module, target.scaling)
    return layer


def _linear(module: nn.Module, target: Target, config: LoraConfig) -> MergeableLayer:
    """Build the LoRA layer of an nn.Linear; on the meta device, since `adopt` brings the weights."""
    assert isinstance(module, nn.Linear)
    return Linear(
        module.in_features,
        module.out_features,
        r=target.r,
        lora_alpha=target.lora_alpha,
        lora_dropout=config.lora_dropout,
        merge_weights=False,
        bias=module.bias is not None,
        device="meta",
    )


_BUILDERS: dict[type[nn.Module], Callable[[nn.Module, Target, LoraConfig], MergeableLayer]] = {nn.Linear: _linear}
