"""What the generator says, with the probabilities it saw, and the same by plain passes without a cache.

data in: a model, prompts → out: the tokens of each answer, and at each the likeliest tokens with their log-probabilities.
Answers are compared by these numbers, not by their text: where two tokens are as likely but for rounding, either is right.

N positions, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lorakeet.infer.engine import Engine, Request, Token
from lorakeet.infer.mode import evaluating
from lorakeet.models.decoder import CausalLM
from lorakeet.proofs.passes import allowed, largest_difference, next_logprobs, shaken

NUM_LIKELIEST = 5


@dataclass(frozen=True)
class Said:
    """One answer: its tokens, and the log-probabilities of the likeliest tokens in the place of each."""

    ids: list[int] = field(default_factory=list)
    likeliest: list[dict[int, float]] = field(default_factory=list)

    def add(self, token: Token) -> None:
        """Put one more token behind the answer."""
        self.ids.append(token.id)
        self.likeliest.append(dict(token.likeliest))


def said(model: CausalLM, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Said]:
    """Let the generator answer all prompts side by side, greedily."""
    answers = [Said() for _ in prompts]
    with evaluating(model):
        engine = Engine(model)
        for prompt, answer in zip(prompts, answers, strict=True):
            engine.submit(
                Request(
                    prompt=prompt,
                    stop_ids=(),
                    max_new_tokens=num_tokens,
                    num_logprobs=min(NUM_LIKELIEST, model.config.vocab_size),
                    on_token=answer.add,
                )
            )
        while engine.advance():
            pass
    return answers


def uncached(model: CausalLM, prompts: Sequence[Sequence[int]], answers: Sequence[Said]) -> list[torch.Tensor]:
    """Return the log-probabilities of each answer's tokens by a plain pass over prompt and answer: (N, V) each."""
    pairs = zip(prompts, answers, strict=True)
    return [next_logprobs(model, [*prompt, *answer.ids[:-1]], len(prompt)) for prompt, answer in pairs]


def answer_rounding(
    model: CausalLM, prompts: Sequence[Sequence[int]], answers: Sequence[Said], plain: Sequence[torch.Tensor] | None = None
) -> float:
    """Return by how many nats rounding may move what is likely at the tokens of the answers.

    `plain` is what `uncached` returns, if it is at hand.
    """
    plain = uncached(model, prompts, answers) if plain is None else plain
    with shaken(model):
        moved = uncached(model, prompts, answers)
    differences = []
    for one, other in zip(moved, plain, strict=True):
        likely = other.topk(min(NUM_LIKELIEST, other.shape[1])).indices
        differences.append(largest_difference(one.gather(1, likely), other.gather(1, likely)))
    return allowed({"": max(differences)}, model.lm_head.weight.dtype)[""]


def difference_from(logprobs_NV: torch.Tensor, answer: Said) -> float:
    """Return by how many nats an answer's probabilities differ, or by how much less likely than the best its tokens are."""
    found = 0.0
    for token, likeliest, logprobs_V in zip(answer.ids, answer.likeliest, logprobs_NV, strict=True):
        for id, logprob in likeliest.items():
            found = max(found, abs(logprob - float(logprobs_V[id])))
        # Two tokens that rounding can swap lie apart by what it moves both of them.
        found = max(found, float(logprobs_V.max() - logprobs_V[token]) / 2)
    return found


def difference(one: Said, other: Said) -> float:
    """Return by how many nats two answers to one prompt differ, up to where their texts part."""
    found, positions = 0.0, zip(one.ids, other.ids, one.likeliest, other.likeliest, strict=False)
    for mine, theirs, my_likeliest, their_likeliest in positions:
        common = my_likeliest.keys() & their_likeliest.keys()
        found = max(found, *(abs(my_likeliest[id] - their_likeliest[id]) for id in common), 0.0)
        if mine != theirs:
            return found if mine in their_likeliest and theirs in my_likeliest else math.inf
    return found
