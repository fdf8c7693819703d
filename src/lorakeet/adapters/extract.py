"""An adapter out of two models: by what the second differs from the first, within a rank.

data in: directories of a base and of a tuned model of the same shape → out: an adapter for the base, and how much of
the difference it holds. One model and one tensor of the other are in memory. Linear layers become pairs; whatever else
differs (norms, untied embeddings) is saved in full. Biases and tied embeddings have no place in such an adapter.
Legend: R rank, I input width, O output width.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lorakeet.adapters.adapter_file import Pair, write_adapter
from lorakeet.adapters.combine import check_rank, root_of_squares
from lorakeet.adapters.consumers import some
from lorakeet.adapters.model_card import Card, adapter_card
from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError
from lorakeet.files.durable import new_directory, writing
from lorakeet.files.output import check_output
from lorakeet.lora.adapter import BASE_HASH
from lorakeet.lora.targets import is_linear
from lorakeet.models import registry, weights
from lorakeet.models.config_file import load_config
from lorakeet.models.decoder import CausalLM

_OVERSAMPLED, _ITERATIONS = 16, 4


@dataclass(frozen=True)
class Extracted:
    """What was written."""

    directory: Path
    r: int
    num_layers: int
    saved: list[str]
    """Modules that are saved in full."""
    error: float
    """Norm of what the adapter lacks of the linear layers' difference, divided by the norm of that difference."""
    worst_error: float
    """The same of the layer that is met worst."""
    worst_layer: str


@dataclass
class _Difference:
    """What is found while the tuned model is read."""

    r: int
    pairs: dict[str, Pair] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    saved: dict[str, Tensor] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def extract(base: str, tuned: str, output: str | Path, *, r: int) -> Extracted:
    """Write the adapter of rank `r` that brings `base` closest to `tuned`.

    Raises:
        AdapterError: E-ADPT-234 if nothing differs, 235 for a difference that no adapter holds.
        ModelError: E-MODEL-65 or 66 if the shapes differ.
        ConfigError: E-CFG-37 for a rank, E-CFG-46 to 48 for `output`.
    """
    output = Path(output)
    check_rank(r)
    check_output(output)
    base_directory, tuned_directory = registry.resolve(base), registry.resolve(tuned)
    _check_same_shape(base_directory, tuned_directory)
    model = weights.load_model(base_directory)
    found = _difference(model, tuned_directory, r)
    _check(found, tuned_directory)
    name = registry.public_name(base, base_directory)
    note = {BASE_HASH: weights.fingerprint(base_directory), "extracted_from": weights.fingerprint(tuned_directory)}
    config = LoraConfig(r=r, target_modules=_targets(model, found.pairs), modules_to_save=_modules(found.saved) or None)
    about = f"It was extracted from a tuned model, within rank {r}."
    with writing(output), new_directory(output) as draft:
        write_adapter(
            draft,
            found.pairs,
            config=config,
            base_name=name,
            note=note,
            others=found.saved,
            tokenizer_from=tuned_directory,
            card=adapter_card(Card(base=name, about=about)),
        )
    worst = max(found.losses, key=lambda path: found.losses[path] / found.norms[path])
    return Extracted(
        directory=output,
        r=r,
        num_layers=len(found.pairs),
        saved=_modules(found.saved),
        error=root_of_squares(found.losses.values()) / root_of_squares(found.norms.values()),
        worst_error=found.losses[worst] / found.norms[worst],
        worst_layer=worst,
    )


def _check_same_shape(base: Path, tuned: Path) -> None:
    """Refuse models that compute differently with the same weights; token ids may differ."""
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    configs = [dataclasses.asdict(load_config(place)) | ids for place in (base, tuned)]
    differing = [key for key in configs[0] if configs[0][key] != configs[1].get(key)]
    if differing:
        raise AdapterError(
            "E-ADPT-235",
            f"is no tuned form of {base.name}: they differ in {some(differing)}",
            place=str(tuned),
            fix="Name two models of one shape",
        )


def _difference(model: CausalLM, tuned: Path, r: int) -> _Difference:
    """Read the tuned model tensor by tensor, and take the base's away from each."""
    found = _Difference(r)
    modules = dict(model.named_modules())

    def compare(_: nn.Module, names: Iterable[str], tensor: Tensor) -> Tensor:
        names = list(names)
        path, leaf = names[0].rsplit(".", 1)
        old = model.get_parameter(names[0]).detach()
        if not torch.equal(old.float(), tensor.float()):
            if len(names) > 1 or leaf != "weight":
                found.refused.append(" = ".join(names))
            elif is_linear(modules[path]):
                _decompose(found, path, tensor.float() - old.float())
            else:
                found.saved[names[0]] = tensor
        return tensor if len(names) > 1 else old  # what is returned stays in memory

    with torch.device("meta"):
        empty = CausalLM(model.config)
    weights.load_weights(empty, tuned, put=compare)
    return found


def _decompose(found: _Difference, path: str, delta_OI: Tensor) -> None:
    """Add the best pair for one layer's difference: exactly for small matrices, else by a randomised decomposition."""
    size = min(found.r + _OVERSAMPLED, *delta_OI.shape)
    if size * 4 > min(delta_OI.shape):
        left, values_R, right_RI = torch.linalg.svd(delta_OI, full_matrices=False)
    else:
        left, values_R, right = torch.svd_lowrank(delta_OI, size, niter=_ITERATIONS)
        right_RI = right.T
    root_R = values_R[: found.r].sqrt()
    pair = Pair((root_R[:, None] * right_RI[: found.r]).contiguous(), (left[:, : found.r] * root_R).contiguous(), 1.0)
    found.pairs[path] = pair
    found.norms[path] = delta_OI.norm().item()
    found.losses[path] = (delta_OI - pair.B @ pair.A).norm().item()


def _check(found: _Difference, tuned: Path) -> None:
    if found.refused:
        raise AdapterError(
            "E-ADPT-235",
            f"differs in {some(found.refused)}, which an adapter of LoRA pairs cannot hold",
            place=str(tuned),
            fix="Use the tuned model itself",
        )
    if not found.pairs:
        what = f"differs only in {some(found.saved)}" if found.saved else "is equal to the base model"
        raise AdapterError("E-ADPT-234", f"{what}: no linear layer has changed", place=str(tuned), fix="Name the tuned model")


def _targets(model: CausalLM, pairs: dict[str, Pair]) -> list[str]:
    """Return short names where they reach exactly the layers that changed, else their paths."""
    names = sorted({path.rpartition(".")[2] for path in pairs})
    reached = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in names]
    return names if len(reached) == len(pairs) else sorted(pairs)


def _modules(saved: dict[str, Tensor]) -> list[str]:
    return [name.rpartition(".")[0] for name in saved]
