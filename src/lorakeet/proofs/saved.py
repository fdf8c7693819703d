"""A saved adapter loads as it was."""

import torch

from lorakeet.lora.adapter import load_adapter, save_adapter
from lorakeet.proofs.passes import answer_logits, largest_difference, trained
from lorakeet.proofs.proof import TO_THE_BIT, Measured, Proof
from lorakeet.proofs.subject import Subject


def saved_is_loaded(subject: Subject) -> Measured:
    """Save the adapter, wipe it out in memory, load it, and compare tensors and logits bit by bit."""
    model, logits, folder = subject.model, subject.logits, subject.scratch / "adapter-saved"
    before = {name: parameter.detach().clone() for name, parameter in trained(model).items()}
    save_adapter(model, folder)
    try:
        with torch.no_grad():
            for parameter in trained(model).values():
                parameter.fill_(0.1)
        load_adapter(model, folder)
        differences = [largest_difference(parameter, before[name]) for name, parameter in trained(model).items()]
        differences.append(largest_difference(answer_logits(model, subject.examples), logits))
    finally:
        with torch.no_grad():
            for name, parameter in trained(model).items():
                parameter.copy_(before[name])
    return Measured(max(differences), 0.0, TO_THE_BIT)


PROOF = Proof(
    name="saved = loaded",
    compares="All tensors of the adapter, and the logits of the rows' answers, before saving and after loading.",
    fix="Check the disk with lorakeet doctor; do not rely on the saved adapter",
    measure=saved_is_loaded,
    is_quick=True,
)
