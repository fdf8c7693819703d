"""Packed rows train like separate ones."""

from lorakeet.proofs.passes import SHAKEN, distances, loss_and_grads
from lorakeet.proofs.proof import Measured, Proof, worst
from lorakeet.proofs.subject import Subject


def packed_is_separate(subject: Subject) -> Measured:
    """Compare losses and gradients of rows end to end in one stream with those of each row by itself."""
    together = loss_and_grads(subject.model, [subject.batch(subject.examples)])
    return worst(distances(together, subject.alone), subject.allowed, SHAKEN)


PROOF = Proof(
    name="packed = separate",
    compares="The loss of each row and all gradients, of rows end to end in one stream and of each row by itself.",
    fix="Do not train here: rows disturb each other. Report it with the output of lorakeet doctor",
    measure=packed_is_separate,
    is_quick=True,
)
