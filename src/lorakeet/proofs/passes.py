"""Passes of a model whose results are compared, and how much rounding moves them.

data in: a model with adapters, packed batches → out: losses of the rows, gradients of the adapters, log-probabilities;
and distances between two such results. The rounding of a pass is measured by making it again with the result of every
layer moved by one unit in its last place: what that changes, another order of sums may change too.

S supervised tokens, N positions, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakeet.config import LoraConfig
from lorakeet.data.conversation import Example
from lorakeet.data.pack import PackedBatch, pack
from lorakeet.lora.inject import inject, lora_layers
from lorakeet.models.decoder import CausalLM
from lorakeet.objectives.sft import packed_loss, sum_by_example

ROUNDINGS = 8
"""How many times further than one rounding of every layer a sound result may be: a layer rounds several times."""
SHAKEN = f"{ROUNDINGS} × a plain pass with every layer rounded once more"
_UPDATE = 0.02
"""Standard deviation of B in adapters that no run has trained: large enough that a lost one is seen."""

Grads = dict[str, Tensor]


@dataclass(frozen=True)
class Pass:
    """The losses of the rows, in their order, and the gradients of what is trained, all of sums."""

    losses: Tensor
    grads: Grads


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def loss_and_grads(model: CausalLM, batches: Sequence[PackedBatch], *, exact: bool = False) -> Pass:
    """Add up losses and gradients over batches, by the loss of training, or by a plain one in float64 if `exact`."""
    parameters, losses = trained(model), list[Tensor]()
    grads = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for batch in batches:
        total = (exact_loss if exact else packed_loss)(model, batch, on_losses=losses.append)
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for name, grad in zip(parameters, found, strict=True):
            grads[name] += 0 if grad is None else grad
    return Pass(torch.cat(losses).detach(), grads)


def exact_loss(model: CausalLM, batch: PackedBatch, *, on_losses: Callable[[Tensor], None]) -> Tensor:
    """Compute what `packed_loss` does, over all logits at once and in float64: sums over a vocabulary round, too."""
    hidden_SD = model(
        batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens, rows_S=batch.supervised_S, parents=batch.parents
    )
    losses_S = F.cross_entropy(model.logits(hidden_SD).double(), batch.targets_S, reduction="none")
    on_losses(sum_by_example(batch, losses_S.detach()))
    return losses_S.sum()


def rounding_of(model: CausalLM, batches: Sequence[PackedBatch], truth: Pass) -> dict[str, float]:
    """Return how far from `truth` sound losses and gradients of the same batches may be."""
    with shaken(model):
        moved = loss_and_grads(model, batches, exact=True)
    return allowed(distances(moved, truth), model.lm_head.weight.dtype)


def distances(one: Pass, other: Pass) -> dict[str, float]:
    """Return how far apart the losses and each gradient are, relative to those of `other`."""
    return {"the losses": distance(one.losses, other.losses)} | {
        f"the gradient of {name}": distance(one.grads[name], grad) for name, grad in other.grads.items()
    }


def distance(one: Tensor, other: Tensor) -> float:
    """Return the norm of the difference, relative to the norm of `other`."""
    size = other.double().norm().item()
    difference = (one.double() - other.double()).norm().item()
    return difference / size if size else difference


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference between two numbers; NaN if there is one among them."""
    return (one.double() - other.double()).abs().max().item() if one.numel() else 0.0


def allowed(rounding: Mapping[str, float], dtype: torch.dtype) -> dict[str, float]:
    """Return how far each result may be: a few times what rounding moved it, and that is no less than half a last place."""
    return {name: ROUNDINGS * max(moved, torch.finfo(dtype).eps / 2) for name, moved in rounding.items()}


@contextmanager
def shaken(model: nn.Module) -> Iterator[None]:
    """Move every number that a layer returns by one unit in its last place, up or down by chance, while the block runs."""
    generators: dict[torch.device, torch.Generator] = {}

    def shake(_: nn.Module, __: Any, out: Any) -> Any:
        if not (isinstance(out, Tensor) and out.is_floating_point()):
            return out
        if out.device not in generators:
            generators[out.device] = torch.Generator(out.device).manual_seed(0)
        up = torch.randint(0, 2, out.shape, generator=generators[out.device], device=out.device, dtype=torch.int8)
        return out * (1 + torch.finfo(out.dtype).eps * (2 * up - 1).to(out.dtype))

    owners = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    handles = [module.register_forward_hook(shake) for module in owners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def answer_logits(model: CausalLM, examples: Sequence[Example]) -> Tensor:
    """Return the logits of all supervised tokens, each row by itself: (S, V), fp32."""
    found = []
    with torch.inference_mode():
        for example in examples:
            batch = pack([example]).to(model.lm_head.weight.device)
            hidden_SD = model(batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens, rows_S=batch.supervised_S)
            found.append(model.logits(hidden_SD).float())
    return torch.cat(found)


def next_logprobs(model: CausalLM, ids: Sequence[int], first: int) -> Tensor:
    """Return the log-probabilities of what follows each token from `first - 1` on, without a cache: (N, V), fp32."""
    device = model.lm_head.weight.device
    with torch.inference_mode():
        hidden_ND = model(
            torch.tensor(ids, device=device),
            torch.arange(len(ids), device=device),
            torch.tensor([0, len(ids)], dtype=torch.int32, device=device),
            rows_S=torch.arange(first - 1, len(ids), device=device),
        )
        return model.logits(hidden_ND).float().log_softmax(-1)


def draw_adapter(model: CausalLM, config: LoraConfig) -> CausalLM:
    """Put an adapter into a model whose update is not zero, the same one each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inject(model, config)
        with torch.no_grad():
            for _, layer in lora_layers(model):
                layer.lora_B.normal_(std=_UPDATE)
    return model.eval()
