"""Lorakeet: LoRA fine-tuning that proves it is right. `import lorakeet as lora` also replaces loralib.

Only names live here. Each is imported when it is first used, so that `import lorakeet` costs milliseconds
and torch is loaded only by those who need it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lorakeet.version import __version__ as __version__

_HOME = {
    # loralib's names
    "Linear": "lorakeet.lora.layers",
    "Embedding": "lorakeet.lora.layers",
    "MergedLinear": "lorakeet.lora.layers",
    "Conv1d": "lorakeet.lora.layers",
    "Conv2d": "lorakeet.lora.layers",
    "Conv3d": "lorakeet.lora.layers",
    "LoRALayer": "lorakeet.lora.layers",
    "ConvLoRA": "lorakeet.lora.layers",
    "layers": "lorakeet.lora",
    "utils": "lorakeet.lora",
    "mark_only_lora_as_trainable": "lorakeet.lora.helpers",
    "lora_state_dict": "lorakeet.lora.helpers",
    # LoRA on existing modules
    "LoraConfig": "lorakeet.config",
    "inject": "lorakeet.lora.inject",
    "remove": "lorakeet.lora.inject",
    "merge_and_unload": "lorakeet.lora.inject",
    "save_adapter": "lorakeet.lora.adapter",
    "load_adapter": "lorakeet.lora.adapter",
    # Errors
    "LorakeetError": "lorakeet.errors",
    # The commands
    **dict.fromkeys(
        ("train", "check", "evaluate", "chat", "merge", "verify", "demo", "load", "open_run", "Run"), "lorakeet.api"
    ),
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from lorakeet.api import Run as Run
    from lorakeet.api import chat as chat
    from lorakeet.api import check as check
    from lorakeet.api import demo as demo
    from lorakeet.api import evaluate as evaluate
    from lorakeet.api import load as load
    from lorakeet.api import merge as merge
    from lorakeet.api import open_run as open_run
    from lorakeet.api import train as train
    from lorakeet.api import verify as verify
    from lorakeet.config import LoraConfig as LoraConfig
    from lorakeet.errors import LorakeetError as LorakeetError
    from lorakeet.lora import layers as layers
    from lorakeet.lora import utils as utils
    from lorakeet.lora.adapter import load_adapter as load_adapter
    from lorakeet.lora.adapter import save_adapter as save_adapter
    from lorakeet.lora.helpers import lora_state_dict as lora_state_dict
    from lorakeet.lora.helpers import mark_only_lora_as_trainable as mark_only_lora_as_trainable
    from lorakeet.lora.inject import inject as inject
    from lorakeet.lora.inject import merge_and_unload as merge_and_unload
    from lorakeet.lora.inject import remove as remove
    from lorakeet.lora.layers import Conv1d as Conv1d
    from lorakeet.lora.layers import Conv2d as Conv2d
    from lorakeet.lora.layers import Conv3d as Conv3d
    from lorakeet.lora.layers import ConvLoRA as ConvLoRA
    from lorakeet.lora.layers import Embedding as Embedding
    from lorakeet.lora.layers import Linear as Linear
    from lorakeet.lora.layers import LoRALayer as LoRALayer
    from lorakeet.lora.layers import MergedLinear as MergedLinear


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lorakeet' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
