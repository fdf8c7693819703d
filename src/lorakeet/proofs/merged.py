"""A merged adapter answers like one beside its weights."""

from lorakeet.lora.inject import lora_layers
from lorakeet.proofs.passes import SHAKEN, answer_logits, largest_difference
from lorakeet.proofs.proof import Measured, NotChecked, Proof
from lorakeet.proofs.subject import Subject


def merged_is_unmerged(subject: Subject) -> Measured | NotChecked:
    """Compare logits with every update added to its weight, and with every update on the side."""
    if subject.is_quantized:
        return NotChecked("Merge into the 16-bit base, which proves itself: lorakeet merge RUN -o DIR")
    layers = [layer for _, layer in lora_layers(subject.model)]
    beside = subject.logits
    try:
        for layer in layers:
            layer.merge()
        together = answer_logits(subject.model, subject.examples)
    finally:
        for layer in layers:
            layer.unmerge()
    return Measured(largest_difference(together, beside), subject.allowed_logits, SHAKEN)


PROOF = Proof(
    name="merged = unmerged",
    compares="The logits of the rows' answers, with the adapter added to the weights and with it beside them.",
    fix="Use the adapter unmerged, and report it: merging loses a part of what was trained",
    measure=merged_is_unmerged,
    is_quick=True,
)
