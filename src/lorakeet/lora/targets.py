"""Which modules of a model LoRA goes onto: literal names, matched as PEFT matches a list of names.

data in: a model and a LoraConfig → out: the paths of the modules to adapt, with the rank and alpha of each. A name
matches a module whose path is that name or ends in "." and that name. Nothing here is ever run as a regular
expression, so a configuration from elsewhere can neither surprise nor stall.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from lorakeet.config import LoraConfig
from lorakeet.errors import ConfigError
from lorakeet.quant.layers import QuantizedLinear

ALL_LINEAR = "all-linear"
OUTPUT_HEAD = "lm_head"
_SHOWN = 12
_ADAPTABLE = (nn.Linear, QuantizedLinear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


@dataclass(frozen=True)
class Target:
    """One module to adapt, and how strongly."""

    path: str
    r: int
    lora_alpha: float
    scaling: float
    rows: range | None = None
    """Which rows of the module the target is; None if it is the whole module."""


Place = tuple[nn.Module, range | None]
"""A module, or some rows of one."""


def places(model: nn.Module) -> dict[str, Place]:
    """Return what adapters can be named after, by the paths that the checkpoint has for it.

    They are the model's own modules, except where it keeps layers in one matrix that the checkpoint has apart: such a
    model says so in `stored_parts`, {fused layer: {part: number of its rows}}.
    """
    separate: dict[str, dict[str, int]] = getattr(model, "stored_parts", {})
    found: dict[str, Place] = {}
    fused = ""
    for path, module in model.named_modules():
        owner, _, name = path.rpartition(".")
        if fused and path.startswith(fused):
            continue
        if name not in separate:
            found[path] = (module, None)
            continue
        fused, start = f"{path}.", 0
        for part, size in separate[name].items():
            found[f"{owner}.{part}" if owner else part] = (module, range(start, start + size))
            start += size
    return found


def name_matches(name: str, path: str) -> bool:
    """Tell whether `name` is `path` or its last parts."""
    return path == name or path.endswith(f".{name}")


def matches_any(names: Iterable[str], path: str) -> bool:
    """Tell whether any of `names` is `path` or its last parts."""
    return any(name_matches(name, path) for name in names)


def is_bias(name: str) -> bool:
    """Tell whether a parameter is a bias as PEFT sees it, by its name; loralib's helpers see more (helpers.py)."""
    return name.rpartition(".")[2] == "bias"


def find_targets(model: nn.Module, config: LoraConfig) -> list[tuple[Target, nn.Module]]:
    """Return what `config` names, in the order of the model, with the module that it is or that it is a part of.

    Raises:
        ConfigError: E-CFG-42 if a name matches nothing.
    """
    names = [config.target_modules] if isinstance(config.target_modules, str) else config.target_modules
    found = places(model)
    modules = {path: module for path, (module, _) in found.items()}
    if names == [ALL_LINEAR]:
        heads = _output_heads(model)
        paths = [path for path, module in modules.items() if path and is_linear(module) and path not in heads]
    else:
        for name in names:
            if not any(name_matches(name, path) for path in modules):
                raise _matches_nothing(name, modules)
        paths = [path for path in modules if path and matches_any(names, path)]
    paths = [path for path in paths if not _is_excluded(path, config) and _in_layers(path, names, config)]
    # An attention layer brings LoRA to its output projection itself.
    attention = {path for path in paths if isinstance(modules[path], nn.MultiheadAttention)}
    paths = [path for path in paths if path.removesuffix(".out_proj") == path or path[: -len(".out_proj")] not in attention]
    if not paths:
        raise _matches_nothing(", ".join(names), modules)
    return [(replace(target_of(path, config), rows=found[path][1]), modules[path]) for path in paths]


def find_saved_modules(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """Return the modules that modules_to_save names, by their paths, and with ensure_weight_tying those they are tied to.

    Raises:
        ConfigError: E-CFG-42 if a name matches nothing, E-CFG-165 if a weight is tied to another module.
    """
    names = config.modules_to_save or []
    modules = dict(model.named_modules())
    parts = [path for path, (_, rows) in places(model).items() if rows is not None]
    for name in names:
        if any(name_matches(name, path) for path in parts):
            raise ConfigError(
                "E-CFG-42",
                f'"{name}" is a part of a layer that this model keeps in one matrix, and cannot train in full alone',
                place="modules_to_save",
                fix="Name it in target_modules; a rank_pattern can give it a high rank",
            )
        if not any(name_matches(name, path) for path in modules):
            raise ConfigError("E-CFG-42", f'"{name}" matches 0 modules', place="modules_to_save", fix="Correct the name")
    saved = {path: module for path, module in modules.items() if path and matches_any(names, path)}
    # A module inside a saved module goes with it.
    saved = {path: module for path, module in saved.items() if not any(path.startswith(f"{other}.") for other in saved)}
    for path, module in list(saved.items()):
        own = {id(parameter) for parameter in module.parameters()}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if id(parameter) not in own or name.startswith(f"{path}."):
                continue
            if not config.ensure_weight_tying:
                raise ConfigError(
                    "E-CFG-165",
                    f"{path} is tied to {name}, so training it in full would change both or part them",
                    place="modules_to_save",
                    fix="Set ensure_weight_tying: true, which trains both as one, or leave it out",
                )
            partner = name.rpartition(".")[0]
            saved[partner] = modules[partner]
    return saved


def target_of(path: str, config: LoraConfig) -> Target:
    """Return the rank, alpha and scaling of the module at `path`; the first matching pattern counts, as in PEFT."""
    r = next((r for name, r in config.rank_pattern.items() if _pattern_matches(name, path)), config.r)
    alpha = next((a for name, a in config.alpha_pattern.items() if _pattern_matches(name, path)), config.lora_alpha)
    return Target(path, r, alpha, alpha / math.sqrt(r) if config.use_rslora else alpha / r)


def is_linear(module: nn.Module) -> bool:
    """Tell whether `module` is a linear layer: nn.Linear, a quantised one, or the Conv1D of transformers' GPT-2."""
    return isinstance(module, nn.Linear | QuantizedLinear) or is_transformers_conv1d(module)


def is_transformers_conv1d(module: nn.Module) -> bool:
    """Tell whether `module` is transformers' Conv1D, without importing transformers."""
    return any(f"{kind.__module__}.{kind.__name__}" == "transformers.pytorch_utils.Conv1D" for kind in type(module).mro())


def _pattern_matches(name: str, path: str) -> bool:
    """Match a key of rank_pattern or alpha_pattern; PEFT lets a leading ^ demand the whole path."""
    return path == name[1:] if name.startswith("^") else name_matches(name, path)


def _output_heads(model: nn.Module) -> set[str]:
    """Return the paths of the layer that turns hidden states into logits, which "all-linear" leaves alone."""
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    return {
        path
        for path, module in model.named_modules()
        if name_matches(OUTPUT_HEAD, path) or (head is not None and module is head)
    }


def _is_excluded(path: str, config: LoraConfig) -> bool:
    """Tell whether exclude_modules names the module, or modules_to_save names it or a module around it."""
    if matches_any(config.exclude_modules, path):
        return True
    parts = path.split(".")
    ancestors = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return any(matches_any(config.modules_to_save or (), ancestor) for ancestor in ancestors)


def _in_layers(path: str, names: list[str], config: LoraConfig) -> bool:
    """Tell whether layers_to_transform allows the module; a full path in target_modules always is, as in PEFT."""
    wanted = config.layers_to_transform
    if wanted is None or wanted == [] or path in names:
        return True
    index = layer_index(path, config.layers_pattern)
    return index is not None and (index == wanted if isinstance(wanted, int) else index in wanted)


def layer_index(path: str, layers_pattern: str | list[str] | None) -> int | None:
    """Return the index of the layer that a module lies in: the first number in its path.

    Without `layers_pattern` the list of layers must itself lie in something ("model.layers.3.mlp"); with it, the
    number must follow one of these names.
    """
    parts = path.split(".")
    patterns = [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern or []
    named = [pattern.split(".") for pattern in patterns]
    for at, part in enumerate(parts[:-1]):
        if not (part.isascii() and part.isdigit()):
            continue
        if any(parts[max(at - len(name), 0) : at] == name for name in named) or (not named and at >= 2):
            return int(part)
    return None


def _matches_nothing(name: str, modules: dict[str, nn.Module]) -> ConfigError:
    """Return the error of a name that matches nothing, with what would match."""
    usable: list[str] = []
    for path, module in modules.items():
        last = path.rpartition(".")[2]
        if path and (isinstance(module, _ADAPTABLE) or is_transformers_conv1d(module)):
            usable.append(path if last.isdigit() else last)
    found = list(dict.fromkeys(usable))
    if not found:
        return ConfigError(
            "E-CFG-42",
            f'target "{name}" matches 0 modules; the model has no layer that LoRA can go onto',
            place="target_modules",
            fix="LoRA goes onto linear, embedding, convolution and attention layers",
        )
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ConfigError(
        "E-CFG-42",
        f'target "{name}" matches 0 modules; the model has {", ".join(found[:_SHOWN])}{more}',
        place="target_modules",
        fix="Name some of these",
    )
