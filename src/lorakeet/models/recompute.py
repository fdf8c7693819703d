"""Activation checkpointing: what a layer does not keep for the backward pass, and computes again there.

data in: a decoder → out: the same decoder, whose forward pass keeps less. The numbers stay the same, dropout included:
the recomputed pass draws the masks of the first one.
Source: Chen et al. 2016, arXiv:1604.06174; selective: Korthikanti et al. 2022, arXiv:2205.05198.
"""

from typing import Literal

import torch
import torch._functorch.config as partitioner

from lorakeet.machine.compiling import can_compile
from lorakeet.models.decoder import CausalLM

CHEAP = (
    "ban_recompute_reductions",
    "ban_recompute_materialized_backward",
    "ban_recompute_long_fusible_chains",
    "ban_recompute_used_far_apart",
)
"""Why the compiler keeps what is cheap to compute, by the names of its options: a norm sums over a row, its result goes
into a matrix product, much may lie between its two uses. Products and attention it never computes twice."""


_USUAL = {name: getattr(partitioner, name) for name in CHEAP}


def recompute_activations(model: CausalLM, mode: Literal["selective", "full"] | None) -> None:
    """Let the layers recompute in the backward pass, or keep everything with None; call it before they are compiled.

    full: a layer keeps its input alone. selective: the compiler, which plans both passes of a layer, may recompute
    all that is cheap: norms, rotary positions, the gated activation, casts. Without a compiler there is nobody to
    plan, and selective means full. The compiler is set for the whole process: a process that trains one model after
    the other has each planned as its own run says.
    """
    model.recompute_layers = mode == "full" or (mode == "selective" and not can_compile())
    is_selective = mode == "selective" and can_compile()
    wanted = dict.fromkeys(CHEAP, False) if is_selective else _USUAL
    if any(getattr(partitioner, name) != value for name, value in wanted.items()):
        for name, value in wanted.items():
            setattr(partitioner, name, value)
        torch._dynamo.reset()  # layers that were planned the other way would be taken for the same
