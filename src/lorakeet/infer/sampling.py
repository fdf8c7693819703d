"""From logits to the next token: the most likely one, or a drawn one.

data in: logits of the next token of several sequences → out: one token id each. Every sequence draws from its own
random numbers, so what it gets does not depend on which others are generated beside it.

B sequences, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorakeet.errors import ConfigError, ModelError

LEAST = torch.finfo(torch.float32).tiny
"""A temperature or top_p below it would be 0 in float32; it has the same effect."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the most likely one and ignores the rest."""

    temperature: float = 0.0
    """Logits are divided by it: below 1 sharper, above 1 flatter."""
    top_p: float = 1.0
    """Draw among the fewest tokens whose probabilities reach this sum."""
    top_k: int = 0
    """Draw among this many most likely tokens; 0 for all. Applied before top_p."""
    seed: int | None = None
    """Prompt i of a call draws from seed + i; None draws differently each time."""
    min_p: float = 0.0
    """Leave out what is less likely than this share of the most likely token. Applied after top_p."""
    repetition_penalty: float = 1.0
    """Logits of tokens that occurred are divided by it if positive, multiplied if negative; greedy choice knows it too."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 100):
            raise _out_of_range("temperature", self.temperature, "a number from 0 to 100")
        if not 0 < self.top_p <= 1:
            raise _out_of_range("top_p", self.top_p, "a number above 0, at most 1")
        if self.top_k < 0:
            raise _out_of_range("top_k", self.top_k, "an integer from 0")
        if not 0 <= self.min_p <= 1:
            raise _out_of_range("min_p", self.min_p, "a number from 0 to 1")
        if not (math.isfinite(self.repetition_penalty) and 0 < self.repetition_penalty <= 100):
            raise _out_of_range("repetition_penalty", self.repetition_penalty, "a number above 0, at most 100")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise _out_of_range("seed", self.seed, "an integer from 0 to 2^63 - 1", code="E-CFG-51")

    @property
    def is_greedy(self) -> bool:
        """Tell whether chance plays no part."""
        return self.temperature == 0

    def generator(self, index: int) -> torch.Generator:
        """Build the source of random numbers of prompt `index`."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed((self.seed + index) % 2**63)
        return generator


GREEDY = Sampling()


def _out_of_range(name: str, value: object, expected: str, code: str = "E-CFG-82") -> ConfigError:
    return ConfigError(code, f"{name} is {value!r}; expected {expected}", place="sampling")


def choose(logits_BV: torch.Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """Choose the next token of every sequence; with a greedy `sampling` no generator is used.

    Raises: ModelError if a sequence's logits are not finite.
    """
    highest_B, most_likely_B = logits_BV.max(dim=-1)
    if not bool(highest_B.isfinite().all()):
        raise ModelError(
            "E-MODEL-120",
            "the model's logits are not finite",
            place="generation",
            fix="Check the adapter and the weights, or compute in float32 with bf16: false",
        )
    if sampling.is_greedy:
        return most_likely_B.tolist()
    probs_BN, ids_BN = candidates(logits_BV, sampling)
    # One uniform number a sequence picks where the running sum of its probabilities passes it.
    uniform_B = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    sums_BN = probs_BN.double().cumsum(-1)
    picked_B1 = torch.searchsorted(sums_BN, uniform_B.to(sums_BN.device)[:, None] * sums_BN[:, -1:], right=True)
    # Rounding may let the last sum fall short of its own product.
    last_B1 = (probs_BN > 0).sum(-1, keepdim=True) - 1
    return ids_BN.gather(1, picked_B1.minimum(last_B1))[:, 0].tolist()


def penalize_repetition(logits_V: torch.Tensor, ids: Sequence[int], penalty: float) -> torch.Tensor:
    """Return logits in which every token of `ids` is less likely (for a penalty above 1).

    Source: Keskar et al. 2019, arXiv:1909.05858.
    """
    found = torch.tensor(sorted(set(ids)), device=logits_V.device)
    values = logits_V[found]
    penalized = torch.where(values < 0, values * penalty, values / penalty)
    most = torch.finfo(values.dtype).max  # a penalty near 0 has no quotient
    return logits_V.index_put((found,), penalized.clamp(-most, most))


def candidates(logits_BV: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens to draw among, most likely first: (probabilities, ids), with probability 0 for those left out.

    Source of top_p: Holtzman et al. 2020, arXiv:1904.09751; of top_k: Fan et al. 2018, arXiv:1805.04833.
    """
    V = logits_BV.shape[-1]
    logits, ids = torch.topk(logits_BV.float(), min(sampling.top_k or V, V), dim=-1)
    # Below the most likely one, divided by no less than float32 can: so the first quotient is 0, however small the temperature.
    probs = ((logits - logits[:, :1]) / max(sampling.temperature, LEAST)).softmax(-1)
    # A token stays where those before it do not yet reach top_p; so the first one always does.
    before = probs.cumsum(-1) - probs
    probs = probs.masked_fill(before >= max(sampling.top_p, LEAST), 0.0)
    if sampling.min_p > 0:
        probs = probs.masked_fill(probs < sampling.min_p * probs[:, :1], 0.0)
    return probs / probs.sum(-1, keepdim=True), ids
