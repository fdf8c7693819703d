"""Activation checkpointing: what a layer does not keep for the backward pass, and computes again there.

data in: a decoder → out: the same decoder, whose forward pass keeps less. The numbers stay the same, dropout included:
the recomputed pass draws the masks of the first one.
Source: Chen et al. 2016, arXiv:1604.06174; selective: Korthikanti et al. 2022, arXiv:2205.05198.
"""

from typing import Literal

import torch._functorch.config as partitioner

from lorakeet.models.phi3 import Phi3ForCausalLM
from lorakeet.ops.compiling import can_compile

CHEAP = (
    "ban_recompute_reductions",
    "ban_recompute_materialized_backward",
    "ban_recompute_long_fusible_chains",
    "ban_recompute_used_far_apart",
)
"""Why the compiler keeps what is cheap to compute, by the names of its options: a norm sums over a row, its result goes
into a matrix product, much may lie between its two uses. Products and attention it never computes twice."""


def recompute_activations(model: Phi3ForCausalLM, mode: Literal["selective", "full"]) -> None:
    """Let the layers recompute in the backward pass; call it before they are compiled.

    full: a layer keeps its input alone. selective: the compiler, which plans both passes of a layer, may recompute
    all that is cheap: norms, rotary positions, the gated activation, casts. It is told once for this process.
    Without a compiler there is nobody to plan, and selective means full.
    """
    if mode == "full" or not can_compile():
        model.recompute_layers = True
        return
    for name in CHEAP:
        setattr(partitioner, name, False)
