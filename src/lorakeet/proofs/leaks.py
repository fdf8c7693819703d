"""No row sees another one of its stream."""

from dataclasses import replace

import torch

from lorakeet.data.conversation import Example
from lorakeet.proofs.passes import Pass, loss_and_grads
from lorakeet.proofs.proof import TO_THE_BIT, Measured, Proof
from lorakeet.proofs.subject import Subject


def nothing_leaks(subject: Subject) -> Measured:
    """Change every token of the second row and compare what the other rows of the stream train, bit by bit."""
    first, second, *rest = subject.examples
    seconds = replace(second, spans=()), _changed(subject, second)
    before, after = (_others(subject, [first, one, *rest]) for one in seconds)
    changed = sum(not torch.equal(after.grads[name], grad) for name, grad in before.grads.items())
    changed += not torch.equal(after.losses, before.losses)
    note = f"{changed} of {1 + len(before.grads)} losses and gradients changed"
    return Measured(float(changed), 0.0, TO_THE_BIT, note)


def _others(subject: Subject, examples: list[Example]) -> Pass:
    return loss_and_grads(subject.model, [subject.batch(examples)])


def _changed(subject: Subject, example: Example) -> Example:
    """Return a row in which every token is another one, and none is trained on."""
    size = subject.model.config.vocab_size
    return replace(example, input_ids=[(id + 1) % size for id in example.input_ids], spans=())


PROOF = Proof(
    name="no row sees another",
    compares="The losses and gradients of the other rows of a stream, before and after one row's tokens are all changed.",
    fix="Do not train here: attention looks beyond a row's borders. Report it with the output of lorakeet doctor",
    measure=nothing_leaks,
    is_quick=True,
)
