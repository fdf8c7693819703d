"""An adapter of q_proj, k_proj and v_proj on a model that has one qkv_proj, on disk too: the same update, exactly.

data in: an adapter's configuration and tensors, a model that is fused → out: both for the fused layers. The parts' A stand
one below the other, their B block by block, so the rank is the sum of the parts'. What is no update stays as it was.
Legend: I input width, O output width of the fused layer, P rows of a part, R rank.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError
from lorakeet.lora.targets import Target, places, target_of

_A, _B, _LENGTHS = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"


def onto_fused_layers(
    model: nn.Module, config: LoraConfig, tensors: Mapping[str, Tensor], file: Path
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Turn the updates of parts into those of the layers that `model` has in their place; mostly there are none.

    Raises: AdapterError E-ADPT-65 or 66 for parts that do not make up the layer.
    """
    found, ranks, alphas = dict(tensors), dict(config.rank_pattern), dict(config.alpha_pattern)
    there = places(model)
    for path, parts in _fused_layers(model, found).items():
        if path not in there:
            continue
        module = there[path][0]
        num_rows = getattr(module, "out_features", 0)
        owner = path.rpartition(".")[0]
        pairs = {part: _take(found, f"{owner}.{part}" if owner else part) for part in parts}
        starts = _starts({part: pair[_B].shape[0] if pair else None for part, pair in pairs.items()}, num_rows, path, file)
        targets = {part: target_of(f"{owner}.{part}" if owner else part, config) for part in starts}
        if config.use_dora:
            if len(starts) < len(parts):
                raise _misfit("E-ADPT-66", f"DoRA of {' and '.join(starts)} alone has no form on {path}", file)
            found[f"{path}.{_LENGTHS}"] = torch.cat([pairs[part][_LENGTHS] for part in starts])
        r, scaling = sum(target.r for target in targets.values()), next(iter(targets.values())).scaling
        found[f"{path}.{_A}"] = torch.cat([pairs[part][_A] for part in starts])
        found[f"{path}.{_B}"] = _blocks([pairs[part][_B] for part in starts], starts, targets, scaling, num_rows)
        # Patterns count in their order, and a full path must come before the names that also match it.
        ranks = {path: r} | ranks
        alphas = {path: scaling * (math.sqrt(r) if config.use_rslora else r)} | alphas
    if len(ranks) == len(config.rank_pattern):
        return config, found
    names = sorted({name.rpartition(".lora_")[0] for name in found if ".lora_" in name})
    changes = {"target_modules": names, "exclude_modules": [], "layers_to_transform": None, "layers_pattern": None}
    return config.model_copy(update={**changes, "rank_pattern": ranks, "alpha_pattern": alphas}), found


def _fused_layers(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Sequence[str]]:
    """Return the fused layers of whose parts there are updates, with the parts' names."""
    mapping: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    apart = getattr(model, "stored_parts", {})
    found = {}
    for name in tensors:
        owner, _, part = name.removesuffix(f".{_A}").rpartition(".")
        for fused, parts in mapping.items():
            if name.endswith(f".{_A}") and part in parts and fused not in apart:
                found[f"{owner}.{fused}" if owner else fused] = parts
    return found


def _take(tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """Take the update of one part out of the tensors; {} if it has none."""
    return {name: tensors.pop(f"{path}.{name}") for name in (_A, _B, _LENGTHS) if f"{path}.{name}" in tensors}


def _starts(sizes: Mapping[str, int | None], num_rows: int, path: str, file: Path) -> dict[str, int]:
    """Return the first row of each part that has an update, from the sizes of those before it or behind it."""
    names, starts = list(sizes), {}
    known = [size for size in sizes.values() if size is not None]
    if len(known) == len(sizes) and sum(known) != num_rows:
        raise _misfit("E-ADPT-65", f"the parts of {path} have {sum(known)} rows together; it has {num_rows}", file)
    for at, name in enumerate(names):
        if sizes[name] is None:
            continue
        before, behind = ([sizes[other] for other in side] for side in (names[:at], names[at:]))
        if None not in before:
            starts[name] = sum(size or 0 for size in before)
        elif None not in behind:
            starts[name] = num_rows - sum(size or 0 for size in behind)
        else:
            raise _misfit("E-ADPT-66", f"where {name} lies in {path} cannot be told from its own update alone", file)
    return starts


def _blocks(
    Bs: Sequence[Tensor], starts: Mapping[str, int], targets: Mapping[str, Target], scaling: float, num_rows: int
) -> Tensor:
    """Put each part's B into its rows and columns, all for one scale."""
    wide = []
    for B_PR, (part, start) in zip(Bs, starts.items(), strict=True):
        wide.append(F.pad(B_PR * (targets[part].scaling / scaling), (0, 0, start, num_rows - start - len(B_PR))))
    return torch.cat(wide, dim=1)


def _misfit(code: str, message: str, file: Path) -> AdapterError:
    return AdapterError(code, message, place=str(file), fix="Load it onto the model that it was trained on")
