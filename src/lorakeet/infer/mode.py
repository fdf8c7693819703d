"""The one way into evaluation: no dropout anywhere, no gradients, and every module's own mode back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, without gradients, and give each its own mode back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    assert not any(module.training for module in model.modules()), "a module stayed in training mode"
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
