"""loralib's two helpers: what trains, and what is saved.

data in: any model with LoRA layers → out: requires_grad flags, or the part of its state that training changed.
loralib goes by the text of a name ("lora_" in it), so a layer that its owner called `my_lora_layer` trains in full.
Here the LoRA layers say which parameters are theirs; the names decide only outside of them.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from lorakeet.errors import ConfigError
from lorakeet.lora.conv import ConvLoRA
from lorakeet.lora.merging import LoRALayer

_MODES = ("none", "all", "lora_only")


def mark_only_lora_as_trainable(model: nn.Module, bias: str = "none") -> None:
    """Freeze everything but the LoRA parameters and, with `bias`, biases: "none", "all" or those of "lora_only" layers.

    Raises:
        ConfigError: E-CFG-107 for another value of `bias`.
    """
    _check_mode(bias)
    lora = set(_lora_keys(model, [name for name, _ in model.named_parameters()]))
    for name, parameter in model.named_parameters():
        if name not in lora:
            parameter.requires_grad = bias == "all" and _is_bias(name)
    if bias == "lora_only":
        for _, layer in _layers(model):
            if isinstance(getattr(layer, "bias", None), nn.Parameter):
                layer.bias.requires_grad = True


def lora_state_dict(model: nn.Module, bias: str = "none") -> dict[str, Any]:
    """Return the LoRA part of `model.state_dict()`, under the same keys, with the biases that `bias` names.

    Raises:
        ConfigError: E-CFG-107 for another value of `bias`.
    """
    _check_mode(bias)
    state = model.state_dict()
    wanted = set(_lora_keys(model, list(state)))
    if bias == "all":
        wanted |= {key for key in state if _is_bias(key)}
    elif bias == "lora_only":
        for path, layer in _layers(model):
            if any(key.startswith(_join(path, "lora_")) for key in wanted):
                # A convolution keeps its bias one level down.
                wanted |= {_join(path, "conv.bias" if isinstance(layer, ConvLoRA) else "bias")}
    return {key: value for key, value in state.items() if key in wanted}


def _lora_keys(model: nn.Module, keys: list[str]) -> Iterator[str]:
    """Pick the keys of LoRA parameters: those a LoRA layer calls lora_..., and elsewhere those below such a name."""
    paths = {path for path, _ in _layers(model)}
    for key in keys:
        parts = key.split(".")
        # What counts is the name within the innermost LoRA layer, not what that layer itself is called.
        inside = max((end for end in range(len(parts)) if ".".join(parts[:end]) in paths), default=0)
        if any(part.startswith("lora_") for part in parts[inside:]):
            yield key


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoRALayer))


def _is_bias(key: str) -> bool:
    """Tell whether the last part of a name says bias, as loralib does: `in_proj_bias` too, which PEFT leaves frozen.

    Only the last part, since T5's `relative_attention_bias.weight` is an embedding.
    """
    return "bias" in key.rpartition(".")[2]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _check_mode(bias: str) -> None:
    if bias not in _MODES:
        raise ConfigError("E-CFG-107", f"bias is {bias!r}", place="bias", fix=f"Use one of {', '.join(_MODES)}")
