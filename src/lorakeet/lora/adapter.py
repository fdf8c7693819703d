"""Adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors.

data in: a model with LoRA → out: a directory that PEFT loads unchanged; and a directory of ours or of PEFT's → a model
with LoRA. Keys and shapes must agree exactly, both ways: nothing is skipped, broadcast or left at its initial value.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError, ConfigError
from lorakeet.lora.inject import adapter_tensors, inject, injection_of, lora_layers, remove
from lorakeet.lora.merging import MergeableLayer
from lorakeet.lora.peft_config import read_config, to_peft, write_config
from lorakeet.lora.targets import matches_any, target_of
from lorakeet.lora.tensor_file import read_tensors, write_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before every path."""
BASE_HASH = "base_hash"
"""Where `extra` holds the hash of the base model."""
_SHOWN = 5


def save_adapter(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    config: LoraConfig | None = None,
    base_model_name_or_path: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapter of `model` to `directory` in PEFT's format, and read it back.

    `config` is the one given to `inject`, and may be left out. `extra` is JSON kept in the weights file's metadata;
    {"base_hash": ...} in it lets `load_adapter` refuse another base model.

    Raises:
        AdapterError: E-ADPT-68 for a tensor that is not finite, E-ADPT-106 where there is nothing to save.
    """
    layers = dict(lora_layers(model))
    if not layers:
        raise AdapterError("E-ADPT-106", "the model has no LoRA layer, so there is nothing to save", fix="Call inject")
    config = _describe(model, layers, config)
    tensors = {PREFIX + name: tensor for name, tensor in adapter_tensors(model, config).items()}
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS_FILE, tensors, extra or {})
    write_config(folder, to_peft(config, sorted(config.target_modules), base_model_name_or_path))


def load_adapter(model: nn.Module, directory: str | os.PathLike[str], *, base_hash: str | None = None) -> LoraConfig:
    """Load an adapter directory of ours or of PEFT's into `model`; inject LoRA first where it has none.

    A load that fails leaves the model as it was. `base_hash` is compared with the one saved, where both exist.

    Raises:
        AdapterError: E-ADPT-63 to 68 and 103 to 107; E-ADPT-64 for another base, 65 for shapes, 66 for keys.
    """
    folder = Path(directory)
    path = _weights_path(folder)
    config, literal = read_config(folder)
    tensors, extra = read_tensors(path)
    if base_hash is not None and extra.get(BASE_HASH, base_hash) != base_hash:
        raise AdapterError(
            "E-ADPT-64",
            f"the adapter belongs to the base {extra[BASE_HASH]}; this base is {base_hash}",
            place=str(folder),
            fix="Load the base model it was trained on",
        )
    found = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    if not literal:
        config = config.model_copy(update={"target_modules": _modules_in(found)})
    injected_here = injection_of(model) is None and not any(True for _ in lora_layers(model))
    if injected_here:
        _inject_for(model, config, found, folder)
    try:
        _check_scaling(model, config, folder)
        expected = adapter_tensors(model, config)
        _check_same(expected, found, path)
    except AdapterError:
        if injected_here:
            remove(model)
        raise
    _copy_in(model, expected, found)
    return config


def adapter_extra(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the `extra` that an adapter was saved with; {} for an adapter that PEFT wrote."""
    return read_tensors(_weights_path(Path(directory)))[1]


def _weights_path(folder: Path) -> Path:
    """Return the weights file, or say why there is none to load."""
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return path
    if not folder.is_dir():
        raise AdapterError("E-ADPT-105", "is no directory", place=str(folder), fix="Name an adapter directory")
    pickled = [
        name for name in ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth") if (folder / name).exists()
    ]
    if pickled:
        raise AdapterError(
            "E-ADPT-63",
            f"{pickled[0]} is a pickle file, which can run code, and is refused",
            place=str(folder),
            fix="Convert it to adapter_model.safetensors where you trust it",
        )
    raise AdapterError("E-ADPT-105", f"has no {WEIGHTS_FILE}", place=str(folder), fix="Name an adapter directory")


def _describe(model: nn.Module, layers: dict[str, MergeableLayer], config: LoraConfig | None) -> LoraConfig:
    """Return a config whose names, ranks and alphas are those of the layers as they are."""
    injection = injection_of(model)
    if config is None:
        config = injection.config if injection is not None else LoraConfig(task_type=None)
    names = sorted({path.rpartition(".")[2] for path in layers})
    wanted = set(layers)
    reached = {path for path, _ in model.named_modules() if matches_any(names, path)}
    config = config.model_copy(update={"target_modules": names if reached == wanted else sorted(wanted)})
    if reached == wanted:
        config = config.model_copy(update={"layers_to_transform": None, "layers_pattern": None, "exclude_modules": []})
    return config


def _modules_in(found: Mapping[str, Tensor]) -> list[str]:
    """Return the paths of the modules that saved tensors belong to."""
    return sorted({name.rpartition(".lora_")[0] for name in found if ".lora_" in name})


def _inject_for(model: nn.Module, config: LoraConfig, found: Mapping[str, Tensor], folder: Path) -> None:
    """Inject LoRA as the adapter's config says; a model that lacks its modules is the wrong model."""
    try:
        inject(model, config)
    except ConfigError as error:
        raise AdapterError("E-ADPT-66", f"the adapter does not fit: {error.message}", place=str(folder)) from None


def _check_scaling(model: nn.Module, config: LoraConfig, folder: Path) -> None:
    """Refuse an adapter whose scale is not the one of the LoRA layers that are there."""
    for path, layer in lora_layers(model):
        target = target_of(path, config)
        if layer.scaling != target.scaling:
            raise AdapterError(
                "E-ADPT-107",
                f"{path} scales its update by {layer.scaling:g}, the adapter by {target.scaling:g}",
                place=str(folder),
                fix="Remove the model's LoRA first; load_adapter injects what the adapter needs",
            )


def _check_same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Refuse missing and extra keys, and shapes that differ."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra:
        raise AdapterError(
            "E-ADPT-66",
            f"{len(missing)} keys missing {missing[:_SHOWN]}, {len(extra)} keys too many {extra[:_SHOWN]}",
            place=str(path),
            fix="The adapter belongs to another model or configuration",
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise AdapterError(
                "E-ADPT-65",
                f'tensor "{name}" has shape {tuple(found[name].shape)}; expected {tuple(tensor.shape)}',
                place=str(path),
                fix="The adapter belongs to another model or rank",
            )


def _copy_in(model: nn.Module, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Copy the values, with merged layers unmerged meanwhile."""
    merged = [layer for _, layer in lora_layers(model) if layer.merged]
    for layer in merged:
        layer.unmerge()
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])
    for layer in merged:
        layer.merge()
