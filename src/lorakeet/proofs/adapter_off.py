"""An adapter that is switched off leaves the base model."""

from lorakeet.lora.disable import disabled_adapters
from lorakeet.proofs.passes import answer_logits, largest_difference
from lorakeet.proofs.proof import TO_THE_BIT, Measured, Proof
from lorakeet.proofs.subject import Subject


def off_is_base(subject: Subject) -> Measured:
    """Compare the logits with the adapter switched off with those from before there was one, bit by bit."""
    with disabled_adapters(subject.model):
        off = answer_logits(subject.model, subject.examples)
    return Measured(largest_difference(off, subject.base_logits), 0.0, TO_THE_BIT)


PROOF = Proof(
    name="adapter off = base",
    compares="The logits of the rows' answers with the adapter switched off, and of the base before it had one.",
    fix="Compare with the base model loaded by itself, and report it: something of the adapter stays on",
    measure=off_is_base,
    is_quick=True,
)
