"""Compiled layers compute what eager ones do."""

from lorakeet.machine.compiling import can_compile, uncompile_module
from lorakeet.objectives.sft import pack_for
from lorakeet.proofs.passes import SHAKEN, distances, loss_and_grads
from lorakeet.proofs.proof import Measured, NotChecked, Proof, worst
from lorakeet.proofs.subject import Subject


def compiled_is_eager(subject: Subject) -> Measured | NotChecked:
    """Compare losses and gradients of compiled layers over the stream that training makes, and of eager ones row by row."""
    if not can_compile():
        return NotChecked("Nothing to do: layers are not compiled here; install g++ (or set CXX) for more speed")
    model = subject.model
    model.compile_layers()
    try:
        fast = loss_and_grads(model, [pack_for(model, subject.examples)])
    finally:
        for layer in model.model.layers:
            uncompile_module(layer)
    return worst(distances(fast, subject.alone), subject.allowed, SHAKEN)


PROOF = Proof(
    name="compiled = eager",
    compares="Losses and gradients of compiled layers on the stream that training makes, and of eager ones row by row.",
    fix="Train with LORAKEET_COMPILE=0, and report your compiler and the version of torch",
    measure=compiled_is_eager,
)
