"""Causal attention in blocks of queries, by PyTorch's own matrix multiplications: for any dtype, on any device.

Probabilities are computed again in the backward pass, block by block, so memory grows with a document's length and
not with its square. `ops/attention/packed.py` says what is computed.

T tokens, H query heads, K key-value heads, E head width; n queries and m keys of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lorakeet.machine.compiling import compiled
from lorakeet.ops.attention.segments import Documents, Scoring, read_segments
from lorakeet.ops.soft_cap import soft_cap

QUERY_BLOCK = 512
"""Queries handled at once."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Some queries of a segment and the keys they may see."""

    queries: slice
    keys: tuple[slice, ...]
    num_keys: int
    first_query: int
    """Position of the first query, counted from the first key."""

    @property
    def num_queries(self) -> int:
        return self.queries.stop - self.queries.start


def _blocks(documents: Documents) -> Iterator[_Block]:
    """Cut the segments' queries into blocks."""
    for segment in read_segments(documents.cu_seqlens, documents.parents):
        prefix = segment.prefix_length
        for first in range(0, segment.length, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, segment.length)
            first_key, end_key = max(0, prefix + first - documents.window + 1), prefix + last
            keys, passed = [], 0
            for start, end in segment.ranges:
                begin, stop = max(first_key - passed, 0), min(end_key - passed, end - start)
                if begin < stop:
                    keys.append(slice(start + begin, start + stop))
                passed += end - start
            queries = slice(segment.start + first, segment.start + last)
            yield _Block(queries, tuple(keys), end_key - first_key, prefix + first - first_key)


def _gather(x_KTE: torch.Tensor, keys: tuple[slice, ...]) -> torch.Tensor:
    """Return the tokens of `keys`, in order; without a copy if they lie together."""
    return x_KTE[:, keys[0]] if len(keys) == 1 else torch.cat([x_KTE[:, part] for part in keys], dim=1)


@compiled
def causal_softmax(
    scores: torch.Tensor, first_query: int, window: int, scale: float, softcap: float | None = None
) -> torch.Tensor:
    """Return the probabilities of scores (heads, queries, keys); `first_query` is counted from the first key."""
    query = torch.arange(scores.shape[1], device=scores.device)[:, None] + first_query
    behind = query - torch.arange(scores.shape[2], device=scores.device)[None]
    scaled = scores.float() * scale
    if softcap is not None:
        scaled = soft_cap(scaled, softcap)
    masked = torch.where((behind >= 0) & (behind < window), scaled, float("-inf"))
    weights = torch.exp(masked - masked.amax(-1, keepdim=True))
    return (weights / weights.sum(-1, keepdim=True)).to(scores.dtype)


@compiled
def softmax_backward(grad: torch.Tensor, probs: torch.Tensor, scale: float) -> torch.Tensor:
    """Turn the gradient of probabilities into that of unscaled scores."""
    grad_f, probs_f = grad.float(), probs.float()
    return ((grad_f - (grad_f * probs_f).sum(-1, keepdim=True)) * probs_f * scale).to(probs.dtype)


@compiled
def cap_backward(grad: torch.Tensor, scores: torch.Tensor, scale: float, softcap: float) -> torch.Tensor:
    """Turn the gradient of scores that would not have been capped into that of those that were."""
    return (grad.float() * (1 - (scores.float() * scale / softcap).tanh().square())).to(grad.dtype)


def _scores(q_HTE: torch.Tensor, keys_KmE: torch.Tensor, block: _Block) -> torch.Tensor:
    """Multiply the queries (H, n, E) of one block by its keys: (H, n, m)."""
    H, K, E = q_HTE.shape[0], keys_KmE.shape[0], q_HTE.shape[2]
    # The query heads that share a key head are stacked into one taller matrix: keys are never copied for them.
    q = q_HTE[:, block.queries].reshape(K, -1, E)
    return torch.bmm(q, keys_KmE.transpose(1, 2)).view(H, block.num_queries, block.num_keys)


def attend(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, documents: Documents, scoring: Scoring
) -> torch.Tensor:
    """Attend within documents; returns (T, H * E)."""
    T, H, E = q_THE.shape
    q_HTE, k_KTE, v_KTE = (x.transpose(0, 1).contiguous() for x in (q_THE, k_TKE, v_TKE))
    out_THE = q_THE.new_empty(T, H, E)
    for block in _blocks(documents):
        scores = _scores(q_HTE, _gather(k_KTE, block.keys), block)
        probs = causal_softmax(scores, block.first_query, documents.window, scoring.scaled_by(E), scoring.softcap)
        out = torch.bmm(probs.view(k_KTE.shape[0], -1, block.num_keys), _gather(v_KTE, block.keys))
        out_THE[block.queries] = out.view(H, block.num_queries, E).transpose(0, 1)
    return out_THE.view(T, H * E)


def attend_backward(
    grad: torch.Tensor, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, documents: Documents, scoring: Scoring
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of queries, keys and values, in their shapes."""
    (_, H, E), K = q_THE.shape, k_TKE.shape[1]
    scale = scoring.scaled_by(E)
    q_HTE, k_KTE, v_KTE = (x.transpose(0, 1).contiguous() for x in (q_THE, k_TKE, v_TKE))
    grad_THE = grad.view(q_THE.shape)
    dq = torch.empty_like(q_HTE)
    # Several blocks may see a key: its gradient collects in fp32, since small terms would round away in bf16.
    dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k_KTE, v_KTE))
    for block in _blocks(documents):
        n, m = block.num_queries, block.num_keys
        keys_KmE, values_KmE = _gather(k_KTE, block.keys), _gather(v_KTE, block.keys)
        scores = _scores(q_HTE, keys_KmE, block)
        probs = causal_softmax(scores, block.first_query, documents.window, scale, scoring.softcap)
        g = grad_THE[block.queries].transpose(0, 1).reshape(K, -1, E)
        dprobs = torch.bmm(g, values_KmE.transpose(1, 2)).view(H, n, m)
        dscores = softmax_backward(dprobs, probs, scale)
        if scoring.softcap is not None:
            dscores = cap_backward(dscores, scores, scale, scoring.softcap)
        dscores = dscores.view(K, -1, m)
        dq[:, block.queries] = torch.bmm(dscores, keys_KmE).view(H, n, E)
        dv_KmE = torch.bmm(probs.view(K, -1, m).transpose(1, 2), g)
        dk_KmE = torch.bmm(dscores.transpose(1, 2), q_HTE[:, block.queries].reshape(K, -1, E))
        sizes = [part.stop - part.start for part in block.keys]
        for part, dk_part, dv_part in zip(block.keys, dk_KmE.split(sizes, 1), dv_KmE.split(sizes, 1), strict=True):
            dk[:, part] += dk_part
            dv[:, part] += dv_part
    dq, dk, dv = (x.to(q_THE.dtype).transpose(0, 1).contiguous() for x in (dq, dk, dv))
    return dq, dk, dv
