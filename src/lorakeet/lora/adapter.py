"""Adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors.

data in: a model with LoRA → out: a directory that PEFT loads unchanged; and a directory of ours or of PEFT's → a model
with LoRA. Keys and shapes must agree exactly, both ways: nothing is skipped, broadcast or left at its initial value.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError, ConfigError
from lorakeet.lora.fused_pairs import onto_fused_layers
from lorakeet.lora.inject import adapter_extras, inject, injection_of, lora_layers, peft_path, remove, trained_updates
from lorakeet.lora.peft_config import read_config, to_peft, write_config
from lorakeet.lora.starts import loftq
from lorakeet.lora.targets import matches_any, places, target_of
from lorakeet.lora.tensor_file import read_tensors, write_tensors
from lorakeet.lora.update import Update

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before every path."""
BASE_HASH = "base_hash"
"""Where `extra` holds the hash of the base model."""
_BASE_WEIGHT = ".base_layer.weight"
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

    `config` is the one given to `inject`, and may be left out; for layers made by hand it says, with `bias`, which
    biases belong to the adapter. `extra` is JSON kept in the weights file's metadata;
    {"base_hash": ...} in it lets `load_adapter` refuse another base model.

    Raises:
        AdapterError: E-ADPT-68 for a tensor that is not finite, E-ADPT-106 if there is nothing to save.
    """
    model = _unwrapped(model)
    layers = dict(trained_updates(model))
    if not layers:
        raise AdapterError("E-ADPT-106", "the model has no LoRA layer, so there is nothing to save", fix="Call inject")
    config = _describe(model, layers, config)
    tensors = {PREFIX + name: tensor for name, tensor in _adapter_tensors(model, config).items()}
    _require_whole(model, layers, tensors)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    note = loftq.save_beginnings(layers, folder)
    write_tensors(folder / WEIGHTS_FILE, tensors, {**(extra or {}), **note})
    write_config(folder, to_peft(config, list(config.target_modules), base_model_name_or_path))


def load_adapter(model: nn.Module, directory: str | os.PathLike[str], *, base_hash: str | None = None) -> LoraConfig:
    """Load an adapter directory of ours or of PEFT's into `model`; inject LoRA first where it has none.

    A load that fails leaves the model as it was. `base_hash` is compared with the one saved, where both exist.

    Raises:
        AdapterError: E-ADPT-63 to 68 and 103 to 107; E-ADPT-64 for another base, 65 for shapes, 66 for keys.
    """
    model = _unwrapped(model)
    folder = Path(directory)
    config, found = _read_for(model, folder, base_hash)
    path = weights_path(folder)
    injected_here = not any(True for _ in lora_layers(model))
    if injected_here:
        _inject_for(model, config, folder)
    try:
        _check_scaling(model, config, folder)
        _check_same(_adapter_tensors(model, config), found, path)
        _check_tied(adapter_extras(model, config), found, path)
        _copy_in(model, config, found)
    except AdapterError:
        if injected_here:
            remove(model)
        raise
    return config


def config_for(model: nn.Module, directory: str | os.PathLike[str]) -> LoraConfig:
    """Return what `load_adapter` would inject into `model` for an adapter, in the model's own names.

    Raises: AdapterError, as `load_adapter`.
    """
    return _read_for(_unwrapped(model), Path(directory), None)[0]


def _read_for(model: nn.Module, folder: Path, base_hash: str | None) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Read an adapter as one for `model`: its layers' names and ranks, its quantised or full weights."""
    path = weights_path(folder)
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
    found = _without_base_weights(model, found, path)
    if not literal:
        config = config.model_copy(update={"target_modules": _modules_in(found)})
    if config.modules_to_save:
        config = config.model_copy(update={"modules_to_save": _saved_in(model, config.modules_to_save, found)})
    config, found = loftq.for_base_of(model, folder, config, found, extra)
    return onto_fused_layers(model, config, found, path)


def adapter_extra(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the `extra` that an adapter was saved with; {} for an adapter that PEFT wrote."""
    return read_tensors(weights_path(Path(directory)))[1]


def _require_whole(model: nn.Module, layers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse to save an adapter in which a layer is missing or empty, as sharded models have left it elsewhere."""
    for path in layers:
        prefix = f"{PREFIX}{peft_path(model, path)}."
        own = [tensor for name, tensor in tensors.items() if name.startswith(prefix)]
        if len(own) < 2 or not all(tensor.numel() for tensor in own):
            raise AdapterError("E-ADPT-106", f"{path} has nothing to save", fix="Gather the whole model first")


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel or torch.compile, whose names the file has."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def weights_path(folder: Path) -> Path:
    """Return the weights file, or say why there is none to load."""
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return path
    if not folder.is_dir():
        raise AdapterError("E-ADPT-105", "is no directory", place=str(folder), fix="Name an adapter directory")
    pickled = [name for name in ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth") if (folder / name).exists()]
    if pickled:
        raise AdapterError(
            "E-ADPT-63",
            f"{pickled[0]} is a pickle file, which can run code, and is refused",
            place=str(folder),
            fix="Convert it to adapter_model.safetensors if you trust it",
        )
    raise AdapterError("E-ADPT-105", f"has no {WEIGHTS_FILE}", place=str(folder), fix="Name an adapter directory")


def _adapter_tensors(model: nn.Module, config: LoraConfig) -> dict[str, Tensor]:
    """Return the tensors that make up the adapter, under PEFT's names without its prefix."""
    tensors: dict[str, Tensor] = {}
    for path, layer in trained_updates(model):
        tensors.update({f"{peft_path(model, path)}.{name}": tensor for name, tensor in layer.to_peft().items()})
    return tensors | adapter_extras(model, config)


def _describe(model: nn.Module, layers: dict[str, Update], config: LoraConfig | None) -> LoraConfig:
    """Return a config whose names, ranks and alphas are those of the layers as they are."""
    injection = injection_of(model)
    if config is None:
        first = next(iter(layers.values()))
        made = LoraConfig(r=first.peft_rank, lora_alpha=_alpha(first, use_rslora=False), task_type=None)
        config = injection.config if injection is not None else made
    # Whatever `inject` was called with, the file says what is there, in names alone.
    changes: dict[str, Any] = _names(model, [path for path in layers if peft_path(model, path) == path])
    config = config.model_copy(update={"layers_to_transform": None, "layers_pattern": None, **changes})
    ranks, alphas = dict(config.rank_pattern), dict(config.alpha_pattern)
    for path, layer in layers.items():
        target = target_of(path, config)
        if (target.r, target.scaling) == (layer.peft_rank, layer.scaling):
            continue
        # Patterns count in their order, and a full path must come before the names that also match it.
        ranks = {path: layer.peft_rank} | ranks
        alphas = {path: _alpha(layer, use_rslora=config.use_rslora)} | alphas
    config = config.model_copy(update={"rank_pattern": ranks, "alpha_pattern": alphas})
    for path, layer in layers.items():
        target = target_of(path, config)
        assert target.r == layer.peft_rank, path
        assert math.isclose(target.scaling, layer.scaling), path
    return config


def _alpha(layer: Update, *, use_rslora: bool) -> float:
    """Return the lora_alpha that gives the layer's scaling at its rank in PEFT's form."""
    return layer.scaling * (math.sqrt(layer.peft_rank) if use_rslora else layer.peft_rank)


def _names(model: nn.Module, paths: list[str]) -> dict[str, list[str]]:
    """Return target_modules that reach exactly `paths`: last names where they do, else paths, else with exclusions."""
    everything = list(places(model))
    for names in (sorted({path.rpartition(".")[2] for path in paths}), sorted(paths)):
        surplus = [path for path in everything if matches_any(names, path) and path not in paths]
        if not surplus:
            return {"target_modules": names, "exclude_modules": []}
    return {"target_modules": sorted(paths), "exclude_modules": surplus}


def _modules_in(found: Mapping[str, Tensor]) -> list[str]:
    """Return the paths of the modules that saved tensors belong to."""
    paths = {name.rpartition(".lora_")[0] for name in found if ".lora_" in name}
    return sorted(path for path in paths if ".base_layer." not in path)


def _without_base_weights(model: nn.Module, found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Drop the base weights that PEFT saves along with adapted embeddings, having seen that they are the model's."""
    modules = dict(model.named_modules())
    kept = dict(found)
    for name in found:
        module = modules.get(name.removesuffix(_BASE_WEIGHT)) if name.endswith(_BASE_WEIGHT) else None
        if module is None:
            continue
        saved = kept.pop(name)
        weight = module.state_dict()["weight"]
        is_same = weight.is_meta or torch.equal(saved, weight.detach().to(saved))  # a base on disk cannot be compared
        if saved.shape != weight.shape or not is_same:
            raise AdapterError(
                "E-ADPT-64",
                f'the adapter brings the base weight "{name}", which is not the one of this model',
                place=str(path),
                fix="Load the base model it was trained on",
            )
    return kept


def _saved_in(model: nn.Module, names: list[str], found: Mapping[str, Tensor]) -> list[str]:
    """Return the modules that are saved in full; PEFT takes every path that ends in the text of a name."""
    held = {name.rpartition(".")[0] for name in found if ".lora_" not in name}
    paths = [path for path, _ in model.named_modules() if path and path.endswith(tuple(names))]
    return [path for path in paths if any(f"{owner}.".startswith(f"{path}.") for owner in held)] or names


def _inject_for(model: nn.Module, config: LoraConfig, folder: Path) -> None:
    """Inject LoRA as the adapter's config says; a model that lacks its modules is the wrong model."""
    try:
        inject(model, config)
    except ConfigError as error:
        # {fused layer: its parts}; models of other packages do not say it.
        fused = getattr(model, "packed_modules_mapping", {})
        split = {part: layer for layer, parts in fused.items() for part in parts if part in config.target_modules}
        fix = "Load the model it was trained on"
        if split:
            there, here = ", ".join(split), ", ".join(dict.fromkeys(split.values()))
            fix = f"It was trained on a model with separate {there}; this one has them fused as {here}"
        raise AdapterError("E-ADPT-66", f"the adapter does not fit: {error.message}", place=str(folder), fix=fix) from None


def _check_scaling(model: nn.Module, config: LoraConfig, folder: Path) -> None:
    """Refuse an adapter whose scale is not the one of the LoRA layers that are there."""
    for path, layer in trained_updates(model):
        scaling = target_of(path, config).scaling
        if not math.isclose(layer.scaling, scaling):
            raise AdapterError(
                "E-ADPT-107",
                f"{path} scales its update by {layer.scaling:g}, the adapter by {scaling:g}",
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


def _check_tied(extras: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Refuse two values for what is one tensor in the model."""
    first: dict[int, str] = {}
    for name, tensor in extras.items():
        other = first.setdefault(tensor.data_ptr(), name)
        if not torch.equal(found[name], found[other]):
            raise AdapterError(
                "E-ADPT-66",
                f"{other} and {name} differ, but the model has one weight for both",
                place=str(path),
                fix="The adapter belongs to a model whose embedding and head are not tied",
            )


def _copy_in(model: nn.Module, config: LoraConfig, found: Mapping[str, Tensor]) -> None:
    """Copy the values into the layers, biases and saved modules; all of them or, where one does not fit, none."""
    before: list[tuple[Update, dict[str, Tensor]]] = []
    for path, layer in trained_updates(model):
        prefix = f"{peft_path(model, path)}."
        current = {name: tensor.clone() for name, tensor in layer.to_peft().items()}
        before.append((layer, current))
        try:
            layer.from_peft({name: found[prefix + name] for name in current})
        except AdapterError:
            for changed, values in before:
                changed.from_peft(values)
            raise
    with torch.no_grad():
        for name, tensor in adapter_extras(model, config).items():
            tensor.copy_(found[name])
