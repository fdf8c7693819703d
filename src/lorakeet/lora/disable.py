"""The base model inside an adapted one, for as long as a block runs.

data in: a model with LoRA → out: the same model computing as if LoRA had never been there, then as before.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lorakeet.errors import AdapterError
from lorakeet.lora.inject import injection_of, lora_layers, trained_updates
from lorakeet.lora.targets import is_bias


@contextmanager
def disabled_adapters(model: nn.Module) -> Iterator[None]:
    """Switch all LoRA updates off, and the modules_to_save back to their originals.

    A model without LoRA is left alone.

    Raises:
        AdapterError: E-ADPT-120 if biases train along: the base's own are overwritten; E-ADPT-113 with PiSSA.
    """
    injection = injection_of(model)
    if injection is not None and injection.config.bias != "none" and _trains_biases(model):
        raise AdapterError(
            "E-ADPT-120", "the adapter trains biases, so the base model is no longer in it", fix="Load the base model"
        )
    for _, update in trained_updates(model):
        update.require_own_weight()
    merged = [(layer, layer.merged) for _, layer in lora_layers(model)]
    swapped = [(path, model.get_submodule(path)) for path in (injection.saved_modules if injection else ())]
    try:
        for layer, _ in merged:
            layer.unmerge()
            layer.is_off = True
        for path, _ in swapped:
            assert injection is not None
            model.set_submodule(path, injection.saved_modules[path])
        yield
    finally:
        for path, module in swapped:
            model.set_submodule(path, module)
        for layer, was_merged in merged:
            layer.is_off = False
            if was_merged:
                layer.merge()


def _trains_biases(model: nn.Module) -> bool:
    return any(is_bias(name) and parameter.requires_grad for name, parameter in model.named_parameters())
