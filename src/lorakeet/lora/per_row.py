"""Several adapters over one base model: every row of a pass uses its own, or none.

data in: an adapter directory → out: an `Adapter`, its pairs A and B kept apart from the model; and a model without LoRA
whose linear layers add the update of each row's adapter to the base's product, which is computed once for all rows.

An adapter is known by the hash of its content, never by its name: whoever keeps something for an adapter keeps it
under `Adapter.key`, so a file that changes under the same name is another adapter. It does not choose adapters.

T tokens of a pass, S rows of the last layer and the head, I input width, O output width, R rank.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorakeet.errors import AdapterError
from lorakeet.lora.adapter import load_adapter
from lorakeet.lora.inject import injection_of, lora_layers, remove
from lorakeet.lora.layers import LinearLoRA
from lorakeet.ops.lora_linear import add_lora


@dataclass(frozen=True, slots=True)
class Pair:
    """The update of one linear layer: scaling · B A."""

    lora_A_RI: Tensor
    lora_B_OR: Tensor
    scaling: float


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter outside of any model."""

    key: str
    """SHA-256 of everything in it."""
    pairs: Mapping[str, Pair]
    """By the path of the linear layer in the model."""


def read_adapter(model: nn.Module, directory: str | os.PathLike[str], *, base_hash: str | None = None) -> Adapter:
    """Read an adapter directory for `model`, which has no LoRA and is left as it was.

    Raises: AdapterError as `load_adapter`, and E-ADPT-270 for an adapter that is more than pairs on linear layers.
    """
    with torch.inference_mode(False), torch.random.fork_rng(devices=()):
        load_adapter(model, directory, base_hash=base_hash)
        return take_adapter(model, place=str(directory))


def take_adapter(model: nn.Module, *, place: str = "") -> Adapter:
    """Take the LoRA of `model` off it and return it as an adapter.

    Raises: AdapterError E-ADPT-270 for an adapter that is more than pairs on linear layers, which stays in the model
    unless its base's weights are all there; E-ADPT-113 with PiSSA.
    """
    pairs, odd = {}, []
    for path, layer in lora_layers(model):
        if not isinstance(layer, LinearLoRA) or layer.fan_in_fan_out:
            odd.append(path)
            continue
        if layer.use_dora:
            odd.append(f"{path} (DoRA)")
        lora_A, lora_B, scaling = layer.pair()
        pairs[path] = Pair(lora_A.detach().clone(), lora_B.detach().clone(), scaling)
    injection = injection_of(model)
    if injection is not None:
        odd += injection.saved_modules
        odd += ["biases"] if injection.config.bias != "none" else []
    remove(model)
    if odd:
        raise AdapterError(
            "E-ADPT-270",
            f"the adapter changes more than linear layers: {', '.join(odd[:3])}",
            place=place,
            fix="Merge it (lorakeet merge RUN -o DIR) and serve the merged model",
        )
    return Adapter(_hash(pairs), pairs)


def _hash(pairs: Mapping[str, Pair]) -> str:
    hasher = hashlib.sha256()
    for path, pair in sorted(pairs.items()):
        for tensor in (pair.lora_A_RI, pair.lora_B_OR):
            hasher.update(f"{path} {tuple(tensor.shape)} {tensor.dtype} {pair.scaling!r};".encode())
            hasher.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


class PerRowAdapters:
    """The adapters of the rows of the present pass, and the hooks by which the model's layers add them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._hooks: dict[str, RemovableHandle] = {}
        self._groups: dict[int, list[tuple[Adapter, Tensor | None]]] = {}
        """For a number of rows, which of them use which adapter; None if all do."""

    @contextmanager
    def of_rows(self, adapters_T: Sequence[Adapter | None], rows_S: Sequence[int] | None = None) -> Iterator[None]:
        """Let row t use `adapters_T[t]` inside the block; layers that see only `rows_S` use those rows' adapters."""
        if not any(adapters_T):
            yield
            return
        for adapter in {id(adapter): adapter for adapter in adapters_T if adapter is not None}.values():
            self._watch(adapter)
        kept = adapters_T if rows_S is None else [adapters_T[row] for row in rows_S]
        self._groups = {len(rows): _grouped(rows) for rows in (kept, adapters_T)}
        try:
            yield
        finally:
            self._groups = {}

    def close(self) -> None:
        """Leave the model without hooks."""
        for handle in self._hooks.values():
            handle.remove()
        self._hooks.clear()

    def _watch(self, adapter: Adapter) -> None:
        for path in adapter.pairs.keys() - self._hooks.keys():
            module = self._model.get_submodule(path)
            self._hooks[path] = module.register_forward_hook(partial(self._add, path))

    def _add(self, path: str, module: nn.Module, inputs: tuple[Tensor, ...], result_TO: Tensor) -> Tensor:
        """Add to each row of a layer's result the update of its adapter."""
        (x_TI,) = inputs
        for adapter, rows in self._groups.get(len(x_TI), ()):
            pair = adapter.pairs.get(path)
            if pair is None:
                continue
            values = pair.lora_A_RI, pair.lora_B_OR, pair.scaling
            if rows is None:
                result_TO = add_lora(result_TO, x_TI, *values)
            else:
                result_TO[rows] = add_lora(result_TO[rows], x_TI[rows], *values)
        return result_TO


def _grouped(adapters: Sequence[Adapter | None]) -> list[tuple[Adapter, Tensor | None]]:
    """Return each adapter with the rows that use it, or None if all rows do."""
    found: dict[str, tuple[Adapter, list[int]]] = {}
    for row, adapter in enumerate(adapters):
        if adapter is not None:
            found.setdefault(adapter.key, (adapter, []))[1].append(row)
    return [(adapter, None if len(rows) == len(adapters) else torch.tensor(rows)) for adapter, rows in found.values()]
