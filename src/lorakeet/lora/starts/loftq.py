"""LoftQ: adapters over a quantised weight that start with what rounding took away from it.

data in: a LoRA layer over a quantised weight, and the weight from before → out: the same layer, whose A and B are the
largest singular values and vectors of the rounding error. The quantised weight stays the one that everybody has: this
is LoftQ's first step; its further ones would change the base, and the adapter with it.

A and B as trained belong to the quantised base, here and in PEFT. On the original weight they would put back what is
not missing there, so they are saved with a second file that holds what they began with, and `load_adapter` takes that
off again where the base is not quantised: `A B − A₀ B₀`, LoRA of rank 2r, as with PiSSA.

PEFT leaves lora_alpha / r out of account, and so starts with the error that many times; here it is divided by it.

Source: Li et al. 2023, arXiv:2310.08659; reference implementation: PEFT's `replace_lora_weights_loftq`.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError, ConfigError
from lorakeet.files.hashing import file_sha256
from lorakeet.lora.merging import MergeableLayer
from lorakeet.lora.quantized import QuantizedLoRA
from lorakeet.lora.starts.pissa import put_decomposition
from lorakeet.lora.tensor_file import read_tensors, write_tensors
from lorakeet.lora.update import Update
from lorakeet.quant.layers import QuantizedLinear

OriginalWeight = Callable[[str], Tensor]
"""Returns the weight of a layer, by its path, as it was before it was quantised: (out, in)."""
BEGINNING_FILE = "loftq_init.safetensors"
_NOTE = "loftq_init"
_OVERSAMPLED = 16
_ITERATIONS = 4


def check_quantized(layer: MergeableLayer, path: str, original_weight: OriginalWeight | None) -> None:
    """Refuse layers that no rounding has changed; before anything is changed.

    Raises: ConfigError, E-CFG-172.
    """
    if not isinstance(layer, QuantizedLoRA):
        raise ConfigError(
            "E-CFG-172",
            f"LoftQ makes up for rounding to 4 or 8 bits, and {path} is not quantised",
            place="peft_config.init_lora_weights",
            fix="Train with load_in_4bit, or set it to true",
        )
    if original_weight is None:
        raise ConfigError(
            "E-CFG-172",
            "LoftQ needs the weights from before they were quantised",
            place="inject",
            fix="Pass original_weight, which gives them by path",
        )


def start_with_rounding_error(update: Update, weight_OI: Tensor) -> None:
    """Set A and B to the best approximation of rank r of `weight_OI` less the quantised weight.

    By a randomised decomposition, which takes 0.14 s for the smallest layer of Phi-3-mini where the exact one takes 8,
    and comes within 0.2 % of the least error that any update of this rank leaves.
    """
    with torch.no_grad():
        error_OI = weight_OI.to(update.lora_A) - update.base_rows(torch.float32)
        size = min(update.r + _OVERSAMPLED, *error_OI.shape)
        left_OS, values_S, right_IS = torch.svd_lowrank(error_OI, size, niter=_ITERATIONS)
        put_decomposition(update, left_OS[:, : update.r], values_S[: update.r], right_IS[:, : update.r].T)
    update.rounding_pair = (update.lora_A.detach().clone(), update.lora_B.detach().clone())


def save_beginnings(updates: Mapping[str, Update], folder: Path) -> dict[str, str]:
    """Write what the adapters began with to a file beside them, where they began with LoftQ.

    Returns the note that the adapter's own file has to hold, so that it never meets another one's beginnings.
    """
    tensors = {}
    for path, update in updates.items():
        if update.rounding_pair is not None:
            tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = update.rounding_pair
    if not tensors:
        return {}
    write_tensors(folder / BEGINNING_FILE, tensors, {})
    return {_NOTE: file_sha256(folder / BEGINNING_FILE)}


def for_base_of(
    model: nn.Module, folder: Path, config: LoraConfig, tensors: Mapping[str, Tensor], note: Mapping[str, Any]
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Turn a saved adapter into the one for `model`: if that is not quantised, less what LoftQ began with.

    Raises: AdapterError, E-ADPT-187, if the file that `note` names is not there.
    """
    file = folder / BEGINNING_FILE
    if _NOTE not in note or any(isinstance(module, QuantizedLinear) for module in model.modules()):
        return config, dict(tensors)
    is_named = file.is_file() and file_sha256(file) == note[_NOTE]
    beginnings = read_tensors(file)[0] if is_named else {}
    shapes = {name: tensor.shape for name, tensor in tensors.items() if name.endswith((".lora_A.weight", ".lora_B.weight"))}
    if {name: tensor.shape for name, tensor in beginnings.items()} != shapes:
        raise AdapterError(
            "E-ADPT-187",
            "the adapter began with what rounding had taken away (LoftQ), and the file that says how is "
            "missing or another adapter's",
            place=str(file),
            fix="Copy it from where the adapter was trained",
        )
    joined = {
        name: torch.cat([tensor, beginnings[name]]) if ".lora_A." in name else torch.cat([tensor, -beginnings[name]], dim=1)
        for name, tensor in tensors.items()
        if name in beginnings
    }
    alpha_factor = math.sqrt(2) if config.use_rslora else 2  # the same scaling at twice the rank
    doubled = {
        "r": 2 * config.r,
        "lora_alpha": alpha_factor * config.lora_alpha,
        "rank_pattern": {name: 2 * r for name, r in config.rank_pattern.items()},
        "alpha_pattern": {name: alpha_factor * alpha for name, alpha in config.alpha_pattern.items()},
    }
    return config.model_copy(update=doubled), {**tensors, **joined}
