"""A model whose linear layers are quantised: made from 16-bit weights once, and read from the cache after that.

data in: a model directory, how to quantise → out: the model, its norms, embeddings and output head in 16 bits. One
tensor at a time is read and quantised, so the 16-bit model is never in memory. The cache holds one file a base model
and configuration, in bitsandbytes' layout; it is found by the hash of the base's weights and checked by its own hash.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from lorakeet.config import QuantizationConfig
from lorakeet.errors import LorakeetError, ModelError
from lorakeet.files.cache import cache_dir, is_whole, make_derived
from lorakeet.files.durable import require_space
from lorakeet.files.safetensors_file import mapped, read_header, write_tensors
from lorakeet.models import weights
from lorakeet.models.config_file import load_config
from lorakeet.models.decoder import CausalLM
from lorakeet.quant.layers import Linear4bit, Linear8bit, QuantizedLinear

logger = logging.getLogger(__name__)

FORMAT = 1
"""To be raised whenever the same weights would be quantised to other numbers, or the file's layout changes."""
_FILE = "model.safetensors"


def load_quantized_model(
    directory: Path, quantization: QuantizationConfig, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> CausalLM:
    """Build the model of a directory with its linear layers quantised, in evaluation mode.

    Raises: ModelError, as `weights.load_model`, and if a weight is not finite.
    """
    directory = Path(directory)
    config = load_config(directory)
    with torch.device("meta"):
        model = CausalLM(config)
    cached = cache_dir() / "quantized" / _key(directory, quantization, dtype)
    if is_whole(cached):
        _read(model, cached / _FILE, dtype)
    else:
        _quantize(model, directory, quantization, dtype)
        _write(model, cached)
    return model.to(device).eval()


def quantized_paths(model: nn.Module) -> list[str]:
    """Return the paths of the layers that are quantised: every linear layer but the output head."""
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and path != "lm_head"]


def _key(directory: Path, quantization: QuantizationConfig, dtype: torch.dtype) -> str:
    """Name what the quantised weights depend on."""
    how = (
        {"bits": 8}
        if quantization.load_in_8bit
        else {"bits": 4, "type": quantization.bnb_4bit_quant_type, "double": quantization.bnb_4bit_use_double_quant}
    )
    facts = [FORMAT, weights.fingerprint(directory), str(dtype), how]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _quantize(model: CausalLM, directory: Path, quantization: QuantizationConfig, dtype: torch.dtype) -> None:
    """Read the 16-bit weights and quantise each as it comes."""
    layers = {f"{path}.weight": path for path in quantized_paths(model)}

    def put(model: nn.Module, names: Iterable[str], tensor: torch.Tensor) -> torch.Tensor:
        (name, *_) = names = list(names)
        if name not in layers:
            return weights.put_parameter(model, names, tensor)
        try:
            layer = quantize_weight(tensor, quantization)
        except ModelError as error:
            raise ModelError(error.code, f"{name}: {error.message}", place=str(directory), fix=error.fix) from None
        plain = model.get_submodule(layers[name])
        layer.bias = plain.bias if isinstance(plain, nn.Linear) else None  # loaded already, or to be loaded into this layer
        model.set_submodule(layers[name], layer)
        return layer.weight

    weights.load_weights(model, directory, dtype=dtype, put=put)


def quantize_weight(weight: torch.Tensor, quantization: QuantizationConfig) -> QuantizedLinear:
    """Build the quantised layer of a weight, (out, in).

    Raises: ModelError if the weight is not finite.
    """
    if quantization.load_in_8bit:
        return Linear8bit.quantize(weight)
    return Linear4bit.quantize(
        weight, quant_type=quantization.bnb_4bit_quant_type, double_quant=quantization.bnb_4bit_use_double_quant
    )


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Return everything that the cache holds, under the names bitsandbytes would save it by."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    for path, layer in layers.items():
        for name, tensor in layer.weight_tensors().items():
            yield f"{path}.{name}", tensor
        if layer.bias is not None:
            yield f"{path}.bias", layer.bias.detach()
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in layers:
            yield name, parameter.detach()


def _write(model: nn.Module, directory: Path) -> None:
    """Write the cache, whole or not at all; a cache that cannot be written costs time at the next start, no more."""
    tensors = dict(_tensors(model))
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        require_space(directory.parent, sum(tensor.nbytes for tensor in tensors.values()))
        make_derived(directory, lambda draft: write_tensors(draft / _FILE, tensors))
    except (OSError, LorakeetError) as error:
        logger.warning("The quantised weights could not be kept, and will be made again: %s", error)


def _read(model: nn.Module, file: Path, dtype: torch.dtype) -> None:
    """Load the model's weights from the cache."""
    entries = read_header(file, ModelError).entries
    paths = quantized_paths(model)
    owned: dict[str, list[str]] = {path: [] for path in paths}
    for name in entries:
        path = next((p for p in _prefixes(name) if p in owned), None)
        if path is not None:
            owned[path].append(name)
    with mapped(file) as mapping:
        for path, names in owned.items():
            tensors = {name.removeprefix(f"{path}."): mapping.read(entries[name]) for name in names}
            is_8bit = "SCB" in tensors
            layer = Linear8bit.from_tensors(tensors, dtype) if is_8bit else Linear4bit.from_tensors(tensors)
            layer.bias = nn.Parameter(tensors["bias"]) if "bias" in tensors else None
            model.set_submodule(path, layer)
        taken = {name for names in owned.values() for name in names}
        for aliases in dict.fromkeys(weights.aliases(model).values()):
            stored = next((alias for alias in aliases if alias in entries and alias not in taken), None)
            if stored is not None:
                weights.put_parameter(model, aliases, mapping.read(entries[stored]))


def _prefixes(name: str) -> Iterator[str]:
    """Return the paths that a tensor's name begins with."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))
