"""Which models have a short name, what they take to train on this machine, and which of them are here already.

data in: the catalogue, the hub's cache → out: ListedModels, as JSON values or as a table. Nothing is fetched or loaded.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lorakeet import dist
from lorakeet.formatting import size
from lorakeet.machine.hardware import choose_dtype
from lorakeet.machine.memory import free_bytes
from lorakeet.models.catalogue import BYTES_OF_4_BITS, MODELS

_HEADER = ("model", "weights", "licence", "LoRA", "QLoRA", "here")


@dataclass(frozen=True)
class ListedModel:
    """One model with a short name."""

    alias: str
    hub: str
    licence: str
    num_params: int
    lora_bytes: int
    """About what training takes at its peak, rank 16 on all linear layers, 512 tokens a step."""
    qlora_bytes: int
    """The same over a base in 4 bits."""
    cached_bytes: int
    """Size of its weights in the hub's cache; 0 if they are not all there."""


@dataclass(frozen=True)
class Listing:
    """All models with a short name, and what there is to compare their memory with."""

    models: Sequence[ListedModel]
    dtype: str
    """The type in which this machine trains."""
    free_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return a table, at most 80 columns wide."""
        cells = [_HEADER] + [self._cells(model) for model in self.models]
        widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADER))]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
        lines = [rows[0]]
        for model, row in zip(self.models, rows[1:], strict=True):
            lines += [row, f"  {model.hub}"]
        lines += ["", f"LoRA, QLoRA: about the peak memory of training in {self.dtype}, 512 tokens a step."]
        lines.append("`lorakeet check MODEL DATA` predicts it for your rows. `demo` needs no download.")
        if self.free_bytes is not None:
            lines.append(f"{size(self.free_bytes)} are free here; ! marks what takes more.")
        return lines

    def _cells(self, model: ListedModel) -> tuple[str, ...]:
        """Write one model's row."""
        takes = (size(needed) + self._mark(needed) for needed in (model.lora_bytes, model.qlora_bytes))
        here = size(model.cached_bytes) if model.cached_bytes else "-"
        return (model.alias, f"{model.num_params / 1e9:.2f} B", model.licence, *takes, here)

    def _mark(self, needed: int) -> str:
        return " !" if self.free_bytes is not None and needed > self.free_bytes else ""

    def __str__(self) -> str:
        return "\n".join(self.lines())


def list_models() -> Listing:
    """List the models with a short name, the smallest first."""
    dtype = choose_dtype(None, dist.device())
    models = [
        ListedModel(
            alias,
            model.hub,
            model.licence,
            model.shape.num_params,
            int(model.shape.training_bytes(dtype.itemsize, dtype.itemsize)),
            int(model.shape.training_bytes(BYTES_OF_4_BITS, dtype.itemsize)),
            _cached_bytes(model.hub),
        )
        for alias, model in MODELS.items()
    ]
    models.sort(key=lambda model: model.num_params)
    return Listing(models, str(dtype).removeprefix("torch."), _free_bytes())


def _free_bytes() -> int | None:
    return torch.cuda.mem_get_info()[0] if dist.device() != "cpu" else free_bytes()


def _cached_bytes(repo_id: str) -> int:
    """Return the size of a model's weights in the hub's cache; 0 if one of its files is missing there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, "config.json")
    if not isinstance(found, str):
        return 0
    snapshot = Path(found).parent
    index = snapshot / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    files = [snapshot / name for name in names]
    return sum(file.stat().st_size for file in files) if all(file.is_file() for file in files) else 0
