"""The loss in chunks is the loss over all logits at once."""

import torch

from lorakeet.ops import cross_entropy
from lorakeet.proofs.passes import SHAKEN, Pass, allowed, distances, shaken
from lorakeet.proofs.proof import Measured, Proof, worst
from lorakeet.proofs.subject import Subject

ROWS_OF_A_CHUNK = 5


def chunked_is_whole(subject: Subject) -> Measured:
    """Compare loss and gradient of the last hidden states, a few rows of logits at a time, with PyTorch's own over all."""
    model, batch = subject.model, subject.batch(subject.examples)
    with torch.no_grad():
        hidden_SD = model(batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens, rows_S=batch.supervised_S)

    def run(chunked: bool) -> Pass:
        hidden = hidden_SD.detach().clone().requires_grad_()
        if chunked:
            rows, size = ROWS_OF_A_CHUNK, model.config.vocab_size
            loss = cross_entropy.cross_entropy_sum(
                hidden, model.logits, batch.targets_S, vocab_size=size, most_logits=rows * size
            )
        else:
            loss = cross_entropy.cross_entropy_reference(hidden, model.logits, batch.targets_S)
        (grad,) = torch.autograd.grad(loss, hidden)
        return Pass(loss.detach()[None], {"the hidden states": grad})

    whole = run(chunked=False)
    with shaken(model):
        rounding = distances(run(chunked=False), whole)
    return worst(distances(run(chunked=True), whole), allowed(rounding, subject.dtype), SHAKEN)


PROOF = Proof(
    name="loss in chunks = whole",
    compares="Loss and gradient with a few rows of logits in memory at a time, and PyTorch's own over all logits at once.",
    fix="Set LORAKEET_COMPILE=0 and verify again; if that mends it, train so, and report your compiler",
    measure=chunked_is_whole,
    is_quick=True,
)
