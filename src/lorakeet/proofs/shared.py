"""Beginnings that rows share are computed once and train like separate rows."""

from dataclasses import replace

from lorakeet.data.pack import PackedBatch
from lorakeet.objectives.sft import pack_for
from lorakeet.proofs.passes import SHAKEN, distances, loss_and_grads, rounding_of
from lorakeet.proofs.proof import Measured, NotChecked, Proof, worst
from lorakeet.proofs.subject import Subject


def shared_is_separate(subject: Subject) -> Measured | NotChecked:
    """Compare rows that begin alike, their beginnings computed once, with the same rows one by one."""
    model, longest = subject.model, max(subject.examples, key=lambda example: len(example.input_ids))
    ids, last = longest.input_ids, len(longest.input_ids) - 1
    # The same conversation, but for the last two tokens; and one that is like no other.
    twin = replace(longest, input_ids=[*ids[: last - 1], ids[0], ids[1]], spans=(*longest.spans[:-1], (last - 1, last + 1)))
    rows = [longest, twin, min(subject.examples, key=lambda example: len(example.input_ids))]
    together = pack_for(model, rows)
    if together.parents is None or not bool((together.parents >= 0).any()):
        return NotChecked("Nothing to do: this machine computes every row whole")
    apart: list[PackedBatch] = [subject.batch([row]) for row in rows]
    truth = loss_and_grads(model, apart)
    tolerances = rounding_of(model, apart, truth)
    return worst(distances(loss_and_grads(model, [together]), truth), tolerances, SHAKEN)


PROOF = Proof(
    name="shared prompts = separate",
    compares="Losses and gradients of rows that begin alike, with the common tokens computed once, and row by row.",
    fix="Do not train here: rows that begin alike train otherwise than alone. Report it with the output of lorakeet doctor",
    measure=shared_is_separate,
    is_quick=True,
)
