"""The loss in chunks is the loss over all logits at once."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lorakeet.ops import cross_entropy
from lorakeet.proofs.passes import distance
from lorakeet.proofs.proof import Measured, Proof, worst
from lorakeet.proofs.subject import Subject

ROWS_OF_A_CHUNK = 5
TIMES = 16
"""How many times the error of PyTorch's own loss ours may have: compiled sums over a vocabulary run in longer chains."""


def chunked_is_whole(subject: Subject) -> Measured:
    """Hold loss and gradient, a few rows of logits at a time, and PyTorch's own over all of them, against float64."""
    model, batch = subject.model, subject.batch(subject.examples)
    with torch.no_grad():
        hidden_SD = model(batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens, rows_S=batch.supervised_S)
    size, targets = model.config.vocab_size, batch.targets_S

    def chunked(hidden: Tensor) -> Tensor:
        most = ROWS_OF_A_CHUNK * size
        return cross_entropy.cross_entropy_sum(hidden, model.logits, targets, vocab_size=size, most_logits=most)

    def plain(hidden: Tensor) -> Tensor:
        return cross_entropy.cross_entropy_reference(hidden, model.logits, targets)

    def exact(hidden: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(hidden).double(), targets, reduction="sum")

    ours, theirs, truth = (_with_gradient(loss, hidden_SD) for loss in (chunked, plain, exact))
    names, smallest = ("the loss", "its gradient"), torch.finfo(subject.dtype).eps
    errors = {name: distance(*pair) for name, pair in zip(names, zip(ours, truth, strict=True), strict=True)}
    rounding = {name: distance(*pair) for name, pair in zip(names, zip(theirs, truth, strict=True), strict=True)}
    tolerances = {name: TIMES * max(error, smallest) for name, error in rounding.items()}
    return worst(errors, tolerances, f"{TIMES} × the error of PyTorch's own loss, both against float64")


def _with_gradient(loss: Callable[[Tensor], Tensor], hidden_SD: Tensor) -> tuple[Tensor, ...]:
    hidden = hidden_SD.detach().clone().requires_grad_()
    value = loss(hidden)
    return value.detach(), *torch.autograd.grad(value, hidden)


PROOF = Proof(
    name="loss in chunks = whole",
    compares="Loss and gradient with a few rows of logits in memory at a time, and PyTorch's own over all logits at once.",
    fix="Set LORAKEET_COMPILE=0 and verify again; if that mends it, train so, and report your compiler",
    measure=chunked_is_whole,
    is_quick=True,
)
