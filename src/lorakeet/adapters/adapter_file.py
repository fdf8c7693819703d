"""An adapter directory without its model: the pair of every layer, and what else is in it.

data in: a directory in PEFT's format → out: AdapterFile; and pairs → such a directory. Each pair brings its own scale,
so whoever works with pairs needs no patterns and no rsLoRA. Needs no base model and checks nothing against one.
Legend: R rank, I input width, O output width. Embeddings have I = vocabulary; convolutions have further axes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError
from lorakeet.files.durable import write_file
from lorakeet.lora.adapter import BASE_HASH, PREFIX, WEIGHTS_FILE, weights_path
from lorakeet.lora.peft_config import base_model_of, read_config, to_peft, write_config
from lorakeet.lora.starts import loftq
from lorakeet.lora.targets import target_of
from lorakeet.lora.tensor_file import read_tensors, write_tensors
from lorakeet.models.tokenizer_files import copy_tokenizer
from lorakeet.rundir.record import CONFIG, RunRecord

MAGNITUDE = "lora_magnitude_vector"
LINEAR, EMBEDDING = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")
_FOLDED = {"use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, "lora_dropout": 0.0, "init_lora_weights": True}


@dataclass(frozen=True)
class Pair:
    """The update of one layer, `scaling * B @ A`."""

    A: Tensor
    """(R, I), or (R, I, ...) of a convolution."""
    B: Tensor
    """(O, R), or (O, R, 1, ...)."""
    scaling: float
    is_embedding: bool = False
    magnitude: Tensor | None = None
    """DoRA: the length of each row of weight and update together, (O,)."""

    @property
    def r(self) -> int:
        """Rank."""
        return self.A.shape[0]

    @property
    def B_scaled(self) -> Tensor:
        """B in float32 with the scale in it."""
        return self.B.float() * self.scaling

    @property
    def num_parameters(self) -> int:
        """Numbers that were trained."""
        return self.A.numel() + self.B.numel() + (0 if self.magnitude is None else self.magnitude.numel())

    def norm(self) -> float:
        """Compute the Frobenius norm of the update, from products of R by R."""
        A_RI, B_OR = self.A.flatten(1).double(), self.B.flatten(1).double()
        square = ((B_OR.T @ B_OR) * (A_RI @ A_RI.T)).sum().clamp(min=0)
        return abs(self.scaling) * square.sqrt().item()


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter directory holds."""

    directory: Path
    config: LoraConfig
    pairs: Mapping[str, Pair]
    """By the path of the layer."""
    others: Mapping[str, Tensor]
    """Saved modules and trained biases, by PEFT's names without its prefix."""
    base_name: str | None
    """What the adapter calls its base model."""
    note: Mapping[str, Any]
    """What we have noted in the weights file; {} if another tool wrote it."""
    is_literal: bool = True
    """Whether target_modules are names; if not, they are a regular expression, which is never run."""

    @property
    def has_dora(self) -> bool:
        """Whether rows have trained lengths, so that the adapter is no sum of weight and update."""
        return any(pair.magnitude is not None for pair in self.pairs.values())

    @property
    def base_hash(self) -> str | None:
        """Fingerprint of the base model, if noted."""
        return self.note.get(BASE_HASH)


def find_adapter(path: str | Path) -> Path:
    """Return the adapter directory of a run, or the directory itself if it is one.

    Raises: AdapterError E-ADPT-105 if neither is there.
    """
    path = Path(path)
    for folder in (path, path / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    if (path / CONFIG).is_file():
        RunRecord(path).require_finished()
    weights_path(path)  # says what is wrong with a directory that almost is one
    raise AdapterError("E-ADPT-105", "has no adapter_config.json", place=str(path), fix="Name a run or an adapter directory")


def read_adapter(path: str | Path) -> AdapterFile:
    """Read the adapter of a run or of a directory; one that began with LoftQ as that of the 16-bit base.

    Raises: AdapterError E-ADPT-55 to 68, 103 to 105 and 121, as `load_adapter`; 66 if a pair is not whole, 65 if
        it is of another rank than the configuration says.
    """
    directory = find_adapter(path)
    config, is_literal = read_config(directory)
    tensors, note = read_tensors(weights_path(directory))
    found = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    config, found = loftq.for_base_of(nn.Module(), directory, config, found, note)
    pairs: dict[str, Pair] = {}
    for name in list(found):
        for end_A, end_B in (LINEAR, EMBEDDING):
            if name.endswith(f".{end_A}"):
                path_of = name.removesuffix(f".{end_A}")
                other = found.pop(f"{path_of}.{end_B}", None)
                pair = _pair(path_of, found.pop(name), other, config, directory, end_A == EMBEDDING[0])
                pairs[path_of] = replace(pair, magnitude=found.pop(f"{path_of}.{MAGNITUDE}", None))
    halves = [name for name in found if ".lora_" in name]
    if halves or not pairs:
        what = f"{halves[0]} has no counterpart" if halves else "holds no LoRA pair"
        raise AdapterError("E-ADPT-66", what, place=str(directory / WEIGHTS_FILE), fix="Get the adapter again")
    return AdapterFile(directory, config, pairs, found, base_model_of(directory), note, is_literal)


def _pair(path: str, A: Tensor, B: Tensor | None, config: LoraConfig, directory: Path, is_embedding: bool) -> Pair:
    """Put one pair together, with the scale that the configuration gives it."""
    place = str(directory / WEIGHTS_FILE)
    if B is None:
        raise AdapterError("E-ADPT-66", f"{path} has an A and no B", place=place, fix="Get the adapter again")
    target = target_of(path, config)
    if A.ndim < 2 or B.ndim < 2 or A.shape[0] != target.r or B.shape[1] != target.r:
        raise AdapterError(
            "E-ADPT-65",
            f"{path} has A {tuple(A.shape)} and B {tuple(B.shape)}; the configuration says rank {target.r}",
            place=place,
            fix="Get the adapter again",
        )
    return Pair(A, B, target.scaling, is_embedding)


def write_adapter(
    directory: Path,
    pairs: Mapping[str, Pair],
    *,
    config: LoraConfig,
    base_name: str | None,
    note: Mapping[str, Any],
    others: Mapping[str, Tensor] | None = None,
    tokenizer_from: Path | None = None,
    card: str | None = None,
) -> None:
    """Write pairs as an adapter that every tool reads alike: one rank, scale 1, no patterns.

    Scales are folded into B, and smaller ranks are filled up with zeros: tools differ in whether they read patterns
    and rsLoRA. Of `config` only what says which layers are meant is kept. `directory` exists and is empty.
    """
    r = max(pair.r for pair in pairs.values())
    tensors = dict(others or {})
    for path, pair in pairs.items():
        end_A, end_B = EMBEDDING if pair.is_embedding else LINEAR
        tensors[f"{path}.{end_A}"], tensors[f"{path}.{end_B}"] = _filled(pair.A.float(), r, 0), _filled(pair.B_scaled, r, 1)
        if pair.magnitude is not None:
            tensors[f"{path}.{MAGNITUDE}"] = pair.magnitude.contiguous()
    config = config.model_copy(update={**_FOLDED, "r": r, "lora_alpha": float(r)})
    write_tensors(directory / WEIGHTS_FILE, {PREFIX + name: tensor for name, tensor in tensors.items()}, note)
    write_config(directory, to_peft(config, list(config.target_modules), base_name))
    if tokenizer_from is not None:
        copy_tokenizer(tokenizer_from, directory)
    if card is not None:
        write_file(directory / "README.md", card.encode())


def _filled(tensor: Tensor, size: int, dim: int) -> Tensor:
    """Fill one axis up to `size` with zeros."""
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim).contiguous()


def targets_of(adapters: Sequence[AdapterFile], pairs: Mapping[str, Pair]) -> list[str]:
    """Return target_modules that reach exactly the layers of `pairs`: short names where the adapters have such."""
    plain = all(
        adapter.is_literal and not adapter.config.exclude_modules and adapter.config.layers_to_transform is None
        for adapter in adapters
    )
    return sorted({name for adapter in adapters for name in adapter.config.target_modules}) if plain else sorted(pairs)
