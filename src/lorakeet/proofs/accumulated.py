"""A step over several micro-batches is one large step."""

import torch

from lorakeet.proofs.passes import SHAKEN, Pass, distances, trained
from lorakeet.proofs.proof import Measured, Proof, worst
from lorakeet.proofs.subject import Subject
from lorakeet.training import loop


def accumulated_is_one_step(subject: Subject) -> Measured:
    """Take a step over micro-batches of one row and compare its gradient with the rows' sum, divided once by all tokens."""
    model, truth = subject.model, subject.alone
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.0)  # the step is real, but nothing moves
    try:
        batches = [subject.batch([example]) for example in subject.examples]
        outcome = loop.train_step(model, batches, optimizer, max_grad_norm=0.0)
        grads = {name: parameter.grad.detach() for name, parameter in trained(model).items() if parameter.grad is not None}
    finally:
        optimizer.zero_grad(set_to_none=True)
    num_tokens = subject.num_supervised
    step = Pass(truth.losses.new_tensor([outcome.loss]), grads)
    large = Pass(truth.losses.sum()[None] / num_tokens, {name: grad / num_tokens for name, grad in truth.grads.items()})
    return worst(distances(step, large), subject.allowed, SHAKEN)


PROOF = Proof(
    name="accumulation = one step",
    compares="Loss and gradients of a step over micro-batches of one row, and the rows' sum divided once by all their tokens.",
    fix="Train with gradient_accumulation_steps 1, and report it: some rows weigh more than others",
    measure=accumulated_is_one_step,
    is_quick=True,
)
