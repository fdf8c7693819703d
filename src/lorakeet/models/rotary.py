"""Cosines and sines of every kind of rotation that a description can ask for.

data in: the positions of packed tokens, the documents' borders, how a layer rotates → out: one table for each kind, which
all layers of that kind share. The formulas are those of transformers' modeling_rope_utils.

T tokens, R rotating pairs.
"""

import math

import torch

from lorakeet.models.config import DecoderConfig, LinearRope, Llama3Rope, LongRope, Rotary, YarnRope
from lorakeet.ops.rope import rope_tables

Tables = tuple[torch.Tensor, torch.Tensor] | tuple[None, None]
"""Cosines and sines, (T, R) each; none for layers that do not rotate."""


def layer_tables(config: DecoderConfig, position_ids_T: torch.Tensor, cu_seqlens: torch.Tensor) -> list[Tables]:
    """Return the tables of each layer; layers that rotate alike share theirs."""
    kinds = [config.rotary(layer) for layer in range(config.num_hidden_layers)]
    made = {kind: _tables(config, kind, position_ids_T, cu_seqlens) for kind in dict.fromkeys(kinds)}
    return [made[kind] for kind in kinds]


def _tables(config: DecoderConfig, rotary: Rotary | None, position_ids_T: torch.Tensor, cu_seqlens: torch.Tensor) -> Tables:
    """Return cosines and sines; under LongRoPE each document's own length chooses its frequencies."""
    if rotary is None:
        return None, None
    scaling, inv_freq_R = rotary.scaling, _frequencies(config.rotary_dim, rotary.theta, position_ids_T.device)
    if scaling is None:
        return rope_tables(position_ids_T, inv_freq_R, 1.0)
    if isinstance(scaling, LinearRope):
        return rope_tables(position_ids_T, inv_freq_R / scaling.factor, 1.0)
    if isinstance(scaling, Llama3Rope):
        return rope_tables(position_ids_T, _llama3(inv_freq_R, scaling), 1.0)
    if isinstance(scaling, YarnRope):
        return rope_tables(position_ids_T, _yarn(inv_freq_R, scaling, rotary.theta), scaling.attention_factor)
    factor_TR = _longrope_factors(config, scaling, position_ids_T, cu_seqlens)
    return rope_tables(position_ids_T, inv_freq_R / factor_TR, scaling.attention_factor)


def llama3_factors(rotary_dim: int, rotary: Rotary) -> torch.Tensor:
    """Return by what the frequency of each pair is divided, (R,); `rotary` has Llama3Rope."""
    assert isinstance(rotary.scaling, Llama3Rope)
    inv_freq_R = _frequencies(rotary_dim, rotary.theta)
    return inv_freq_R / _llama3(inv_freq_R, rotary.scaling)


def _frequencies(rotary_dim: int, theta: float, device: torch.device | None = None) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, rotary_dim, 2, device=device).float() / rotary_dim)


def _llama3(inv_freq_R: torch.Tensor, scaling: Llama3Rope) -> torch.Tensor:
    low, high, turns_R = scaling.low_freq_factor, scaling.high_freq_factor, inv_freq_R / (2 * math.pi)
    kept_R = ((turns_R * scaling.original_max_position_embeddings - low) / (high - low)).clamp(0, 1)
    return (1 - kept_R) * inv_freq_R / scaling.factor + kept_R * inv_freq_R


def _yarn(inv_freq_R: torch.Tensor, scaling: YarnRope, theta: float) -> torch.Tensor:
    R = len(inv_freq_R)

    def pair_that_turns(times: float) -> float:
        return R * math.log(scaling.original_max_position_embeddings / (times * 2 * math.pi)) / math.log(theta)

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * R - 1)
    ramp_R = (torch.arange(R, device=inv_freq_R.device).float() - low) / ((high - low) or 0.001)
    divided_R = ramp_R.clamp(0, 1)
    return inv_freq_R / scaling.factor * divided_R + inv_freq_R * (1 - divided_R)


def _longrope_factors(
    config: DecoderConfig, scaling: LongRope, position_ids_T: torch.Tensor, cu_seqlens: torch.Tensor
) -> torch.Tensor:
    device = position_ids_T.device
    short_R = torch.tensor(scaling.short_factor, device=device)
    long_R = torch.tensor(scaling.long_factor, device=device)
    # A document is as long as its last position says: in generation its earlier tokens are in the cache.
    ends_D = cu_seqlens[1:].to(device).long()
    lengths_D = position_ids_T[ends_D - 1] + 1
    num_new_D = cu_seqlens.diff().to(device)
    is_long_T = torch.repeat_interleave(
        lengths_D > config.original_max_position_embeddings, num_new_D, output_size=len(position_ids_T)
    )
    return torch.where(is_long_T[:, None], long_R, short_R)
