"""Rotary positions (Su et al. 2021, arXiv:2104.09864), on whole heads or on their first part.

data in: the position of every token and its frequencies → out: cosines and sines; heads turned by them.

T tokens, H heads, E head width, R rotating pairs (2 R <= E; pair r is made of the elements r and R + r).
"""

import torch


def rope_tables(position_ids_T: torch.Tensor, inv_freq: torch.Tensor, magnitude: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (cos_TR, sin_TR) in fp32, each times `magnitude`; `inv_freq` is (R,) or, by token, (T, R)."""
    angle_TR = position_ids_T[:, None].float() * inv_freq
    return angle_TR.cos() * magnitude, angle_TR.sin() * magnitude


def rotate(x_THE: torch.Tensor, cos_TR: torch.Tensor, sin_TR: torch.Tensor) -> torch.Tensor:
    """Turn the first 2 R elements of every head by its token's angles, computing in fp32; pass the rest on."""
    R = cos_TR.shape[-1]
    cos, sin = cos_TR[:, None], sin_TR[:, None]
    first, second = x_THE[..., :R].float(), x_THE[..., R : 2 * R].float()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_THE.dtype)
    return turned if x_THE.shape[-1] == 2 * R else torch.cat([turned, x_THE[..., 2 * R :]], dim=-1)
