"""Soft caps: scores and logits bent so that none is larger than a cap (Gemma Team 2024, arXiv:2408.00118)."""

import torch


def soft_cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """Return cap · tanh(x / cap), computed in fp32 at least, in the type of `x`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return ((wide / cap).tanh() * cap).to(x.dtype)
