"""The attention kernel that this machine uses computes what plain PyTorch does."""

from functools import partial

import torch
from torch import Tensor

from lorakeet.ops.attention import packed
from lorakeet.ops.attention.reference import attention_reference
from lorakeet.ops.attention.segments import NO_WINDOW, Scoring
from lorakeet.proofs.passes import distance
from lorakeet.proofs.proof import Measured, Proof, worst
from lorakeet.proofs.subject import Subject

LENGTHS = (70, 1, 129, 24)
"""Tokens of the documents: shorter and longer than the kernels' blocks of 64."""
TREE = (-1, 0, 1, -1)
"""Which document continues which, where beginnings are shared."""
TIMES = 4
"""How many times the error of plain PyTorch a kernel may have: its sums run in another order."""


def kernel_is_plain(subject: Subject) -> Measured:
    """Hold output and gradients of the kernel, and those of plain PyTorch in the same type, against float64."""
    errors: dict[str, float] = {}
    tolerances: dict[str, float] = {}
    qkv = _random_heads(subject)
    wide = [x.detach().cpu().double().requires_grad_() for x in qkv]
    borders = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    config = subject.model.config
    window, scoring = config.sliding_window or NO_WINDOW, Scoring(config.attention_scale, config.attn_logit_softcapping)
    reference = partial(attention_reference, scoring=scoring)
    used = partial(packed.attention, scale=scoring.scale, softcap=scoring.softcap)
    for kind, tree in (("whole rows", None), ("shared beginnings", torch.tensor([-1, *TREE], dtype=torch.int32))):
        truth = _run(reference, wide, borders, window, tree)
        plain = _run(reference, qkv, borders, window, tree)
        ours = _run(used, qkv, borders.to(subject.device), window, None if tree is None else tree.to(subject.device))
        parts = zip(("output", "queries", "keys", "values"), ours, plain, truth, strict=True)
        for part, mine, theirs, exact in parts:
            errors[f"{part}, {kind}"] = distance(mine, exact)
            tolerances[f"{part}, {kind}"] = TIMES * max(distance(theirs, exact), torch.finfo(subject.dtype).eps)
    return worst(errors, tolerances, f"{TIMES} × the error of plain PyTorch, both against float64")


def _random_heads(subject: Subject) -> list[Tensor]:
    """Draw queries, keys and values of the model's own shape."""
    config, generator = subject.model.config, torch.Generator().manual_seed(0)
    heads = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
    drawn = [torch.randn(sum(LENGTHS), n, config.head_dim, generator=generator) for n in heads]
    return [x.to(subject.device, subject.dtype).requires_grad_() for x in drawn]


def _run(function: object, qkv: list[Tensor], borders: Tensor, window: int, tree: Tensor | None) -> list[Tensor]:
    """Return the output and the gradients of queries, keys and values, on the CPU."""
    out = function(*qkv, borders, window, tree)  # type: ignore[operator]
    weights = torch.arange(out.numel(), device=out.device).view_as(out).sin()
    grads = torch.autograd.grad((out.to(torch.promote_types(out.dtype, torch.float32)) * weights).sum(), qkv)
    return [x.detach().cpu() for x in (out, *grads)]


PROOF = Proof(
    name="attention kernel = plain",
    compares="Output and gradients of the attention kernel used here, and of plain PyTorch with one mask, on random heads.",
    fix="Set LORAKEET_COMPILE=0, which leaves our own kernels out, verify again, and report your CPU or GPU",
    measure=kernel_is_plain,
    is_quick=True,
)
