"""LoRA layers for any PyTorch module, and adapters in PEFT's format. Knows nothing of Phi-3.

`layers` and `utils` are the names of loralib's two modules.
"""

from lorakeet.lora import helpers as utils
from lorakeet.lora import layers as layers

__all__ = ["layers", "utils"]
