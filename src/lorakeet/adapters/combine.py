"""Several adapters of one base model as one: the weighted sum of their updates.

data in: AdapterFiles and weights → out: pairs whose updates are that sum. Side by side the pairs add exactly, at the
cost of a rank that adds up too; cut to a smaller rank the sum loses its smallest singular values, and the result says
how much. Does not average A and B one by one, which would be no sum of updates.
Legend: R rank, I input width, O output width.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorakeet.adapters.adapter_file import AdapterFile, Pair, read_adapter, targets_of, write_adapter
from lorakeet.adapters.model_card import Card, adapter_card
from lorakeet.errors import AdapterError, ConfigError
from lorakeet.files.durable import new_directory, writing
from lorakeet.files.output import check_output

MAX_RANK, _SHOWN = 1024, 3


@dataclass(frozen=True)
class Combined:
    """What was written."""

    directory: Path
    r: int
    num_layers: int
    num_parameters: int
    error: float
    """Norm of what the smaller rank has lost, divided by the norm of the whole update; 0 if nothing was cut."""
    worst_error: float
    """The same of the layer that lost most."""
    worst_layer: str


def combine(
    paths: Sequence[str | Path], output: str | Path, *, weights: Sequence[float] | None = None, r: int | None = None
) -> Combined:
    """Write the weighted sum of adapters to `output`; exactly, or within rank `r`.

    Every adapter counts fully if no weights are given.

    Raises:
        AdapterError: E-ADPT-64 for different bases, 230 for parts that cannot be added, 231 for shapes that differ.
        ConfigError: E-CFG-37 for a rank, E-CFG-46 to 48 for `output`.
    """
    output = Path(output)
    check_output(output)
    if r is not None:
        check_rank(r)
    adapters = [read_adapter(path) for path in paths]
    weights = _checked_weights(adapters, weights)
    _check_addable(adapters)
    whole = _side_by_side(adapters, weights)
    if r is None and max(pair.r for pair in whole.values()) > MAX_RANK:
        raise AdapterError(
            "E-ADPT-233", f"the ranks add up to more than {MAX_RANK}", place="combine", fix="Name a rank with --r"
        )
    pairs, losses = cut(whole, r) if r is not None else (whole, dict.fromkeys(whole, 0.0))
    first = adapters[0]
    config = first.config.model_copy(
        update={"target_modules": targets_of(adapters, pairs), "exclude_modules": [], "layers_to_transform": None}
    )
    recipe = " + ".join(f"{weight:g} × {Path(path).name}" for weight, path in zip(weights, paths, strict=True))
    base_name = next((adapter.base_name for adapter in adapters if adapter.base_name), None)
    base_hash = next((adapter.base_hash for adapter in adapters if adapter.base_hash), None)
    note = {**({"base_hash": base_hash} if base_hash else {}), "combined": recipe}
    with writing(output), new_directory(output) as draft:
        card = adapter_card(Card(base=base_name or "", about=f"The weighted sum of adapters: {recipe}."))
        write_adapter(draft, pairs, config=config, base_name=base_name, note=note, tokenizer_from=first.directory, card=card)
    norms = {path: pair.norm() for path, pair in whole.items()}
    worst = max(losses, key=lambda path: losses[path] / max(norms[path], 1e-30))
    return Combined(
        directory=output,
        r=max(pair.r for pair in pairs.values()),
        num_layers=len(pairs),
        num_parameters=sum(pair.num_parameters for pair in pairs.values()),
        error=root_of_squares(losses.values()) / max(root_of_squares(norms.values()), 1e-30),
        worst_error=losses[worst] / max(norms[worst], 1e-30),
        worst_layer=worst,
    )


def parse_weights(text: str | None) -> list[float] | None:
    """Read "0.7,0.3". Raises: AdapterError E-ADPT-232 for what is no list of numbers."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise AdapterError("E-ADPT-232", f'"{text}" is no list of numbers', place="--weights", fix="Write 0.7,0.3") from None


def check_rank(r: int) -> None:
    """Raise ConfigError E-CFG-37 for a rank that no adapter can have."""
    if not 1 <= r <= MAX_RANK:
        raise ConfigError("E-CFG-37", f"is {r}; allowed: 1 to {MAX_RANK}", place="--r", fix="Use for example 16")


def cut(pairs: Mapping[str, Pair], r: int) -> tuple[dict[str, Pair], dict[str, float]]:
    """Return the best approximations of rank `r`, and the norm of what each of them lacks."""
    done = {path: _cut(pair, r) for path, pair in pairs.items()}
    return {path: pair for path, (pair, _) in done.items()}, {path: loss for path, (_, loss) in done.items()}


def _cut(pair: Pair, r: int) -> tuple[Pair, float]:
    """Decompose one update in its own few dimensions: the large matrix is never formed."""
    if pair.r <= r:
        return pair, 0.0
    left_OR, core_B = torch.linalg.qr(pair.B_scaled.flatten(1).double())
    right_IR, core_A = torch.linalg.qr(pair.A.flatten(1).double().T)
    left, values, right = torch.linalg.svd(core_B @ core_A.T)
    root_R = values[:r].sqrt()
    B = (left_OR @ left[:, :r] * root_R).float().reshape(-1, r, *pair.B.shape[2:])
    A = (root_R[:, None] * (right[:r] @ right_IR.T)).float().reshape(r, *pair.A.shape[1:])
    return Pair(A, B, 1.0, pair.is_embedding), values[r:].square().sum().sqrt().item()


def _side_by_side(adapters: Sequence[AdapterFile], weights: Sequence[float]) -> dict[str, Pair]:
    """Concatenate the pairs of each layer, the weight of its adapter in each B."""
    found: dict[str, list[tuple[float, Pair]]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for path, pair in adapter.pairs.items():
            found.setdefault(path, []).append((weight, pair))
    for path, pairs in found.items():
        kinds = {(pair.A.shape[1:], pair.B.shape[:1], pair.B.shape[2:], pair.is_embedding) for _, pair in pairs}
        if len(kinds) > 1:
            shapes = " and ".join(f"{tuple(pair.A.shape)}, {tuple(pair.B.shape)}" for _, pair in pairs)
            raise AdapterError(
                "E-ADPT-231", f"{path} differs in shape: {shapes}", place="combine", fix="Combine adapters of one base model"
            )
    return {path: _joined(pairs) for path, pairs in found.items()}


def _joined(pairs: Sequence[tuple[float, Pair]]) -> Pair:
    A = torch.cat([pair.A.float() for _, pair in pairs])
    B = torch.cat([weight * pair.B_scaled for weight, pair in pairs], dim=1)
    return Pair(A, B, 1.0, pairs[0][1].is_embedding)


def _checked_weights(adapters: Sequence[AdapterFile], weights: Sequence[float] | None) -> list[float]:
    """Return a weight for every adapter."""
    found = [1.0] * len(adapters) if weights is None else list(weights)
    if len(found) != len(adapters) or not all(map(math.isfinite, found)):
        raise AdapterError(
            "E-ADPT-232",
            f"{len(found)} weights for {len(adapters)} adapters: {', '.join(f'{weight:g}' for weight in found)}",
            place="--weights",
            fix="Name one finite number for each adapter",
        )
    return found


def _check_addable(adapters: Sequence[AdapterFile]) -> None:
    """Refuse adapters of different bases, and parts that are no update and so cannot be added."""
    for adapter in adapters:
        if adapter.others or adapter.has_dora:
            more = ", ".join(list(adapter.others)[:_SHOWN]) or "trained lengths (DoRA)"
            raise AdapterError(
                "E-ADPT-230",
                f"holds more than updates: {more}",
                place=str(adapter.directory),
                fix="Merge it into its base model instead: lorakeet merge",
            )
    first = adapters[0]
    for other in adapters[1:]:
        hashes, names = (first.base_hash, other.base_hash), (first.base_name, other.base_name)
        one, two = hashes if all(hashes) else names
        if one and two and one != two:
            raise AdapterError(
                "E-ADPT-64",
                f"belongs to the base {two}; the first one's is {one}",
                place=str(other.directory),
                fix="Combine adapters of one base model",
            )


def root_of_squares(values: Iterable[float]) -> float:
    """Compute the norm of a whole from the norms of its parts."""
    return math.sqrt(sum(value * value for value in values))
