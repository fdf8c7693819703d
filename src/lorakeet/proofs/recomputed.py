"""Activations that are computed again train like kept ones."""

from lorakeet.proofs.passes import loss_and_grads
from lorakeet.proofs.proof import TO_THE_BIT, Measured, Proof
from lorakeet.proofs.subject import Subject


def recomputed_is_kept(subject: Subject) -> Measured:
    """Compare losses and gradients with every layer's activations kept and computed again, bit by bit."""
    model, batches = subject.model, [subject.batch([example]) for example in subject.examples]
    before, model.recompute_layers = model.recompute_layers, True
    try:
        again = loss_and_grads(model, batches)
    finally:
        model.recompute_layers = before
    differ = sum(bool((again.grads[name] != grad).any()) for name, grad in subject.alone.grads.items())
    differ += bool((again.losses != subject.alone.losses).any())
    return Measured(float(differ), 0.0, TO_THE_BIT, note=f"{differ} of {1 + len(again.grads)} losses and gradients differ")


PROOF = Proof(
    name="recomputed = kept",
    compares="Losses and gradients with activations kept for the backward pass, and with them computed again.",
    fix="Train with recompute: null, and report it with the output of lorakeet doctor",
    measure=recomputed_is_kept,
)
