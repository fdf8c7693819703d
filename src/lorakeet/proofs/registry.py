"""All proofs, in the order in which they are made."""

from lorakeet.proofs import (
    accumulated,
    adapter_off,
    as_peft,
    as_transformers,
    attention,
    batched,
    cached,
    chunked,
    compiled,
    four_bits,
    leaks,
    merged,
    packed,
    recomputed,
    resumed,
    saved,
    shared,
    split,
    template,
    two_processes,
)
from lorakeet.proofs.proof import Proof

PROOFS: tuple[Proof, ...] = tuple(
    module.PROOF
    for module in (
        # rows
        *(template, packed, leaks, shared),
        # a training step
        *(accumulated, chunked, recomputed, compiled, two_processes, resumed),
        # kernels
        *(attention, four_bits),
        # adapters
        *(adapter_off, merged, split, saved),
        # answers
        *(cached, batched),
        # other libraries
        *(as_transformers, as_peft),
    )
)


def chosen(*, quick: bool) -> tuple[Proof, ...]:
    """Return the proofs to make: all, or those of `--quick`."""
    return tuple(proof for proof in PROOFS if proof.is_quick or not quick)
