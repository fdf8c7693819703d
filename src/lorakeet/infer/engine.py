"""The one generator: evaluation, chat and serving all get their answers here.

data in: a model, prompts as token ids → out: the ids that follow each prompt, up to a stop id or a limit.

Prompts wait in a queue, longest first. As many as fit are read in one packed pass; then every living sequence gets
one token a pass. A sequence that ends makes room, and waiting ones move up. It knows nothing of text or templates.

B living sequences, T tokens of a pass, D hidden width, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lorakeet.errors import ConfigError
from lorakeet.infer.mode import evaluating
from lorakeet.infer.sampling import GREEDY, Sampling, choose
from lorakeet.models.decoder import CausalLM
from lorakeet.models.kv_cache import KVCache

StopReason = Literal["stop", "length"]

MAX_SEQUENCES = 64
"""Sequences alive at once. More would not be faster: from about here a pass is bound by arithmetic."""
PROMPT_TOKENS = 4096
"""Prompt tokens read in one pass, unless a single prompt is longer."""
CACHE_BYTES = 2 << 30
"""Size of the cache that is not exceeded by taking in more sequences; one sequence may always live."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What follows one prompt."""

    ids: list[int]
    """Without the stop id that ended it."""
    stop_reason: StopReason


@dataclass(slots=True)
class _Sequence:
    """A prompt and what has been generated behind it."""

    index: int
    ids: list[int]
    num_prompt_tokens: int
    max_length: int
    generator: torch.Generator
    stop_reason: StopReason | None = None

    @property
    def generation(self) -> Generation:
        assert self.stop_reason is not None
        return Generation(self.ids[self.num_prompt_tokens :], self.stop_reason)


def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Generate behind every prompt; greedy answers are those that the model gives without a cache, one by one.

    Generation ends with stop reason "length" after `max_new_tokens`, or where the model's context is full.

    Args:
        on_token: told (index of the prompt, token id) as each token comes, without stop ids.
    Raises: ConfigError if a prompt is empty or leaves no room in the model's context, or the limit is below 1.
    """
    if max_new_tokens < 1:
        raise ConfigError("E-CFG-81", f"max_new_tokens is {max_new_tokens}; expected at least 1", place="generation")
    sequences = [_sequence(model, index, ids, max_new_tokens, sampling) for index, ids in enumerate(prompts)]
    with evaluating(model):
        batch = _Batch(model, sequences, frozenset(stop_ids), sampling, on_token)
        while batch.advance():
            pass
    return [sequence.generation for sequence in sequences]


def _sequence(model: CausalLM, index: int, prompt: Sequence[int], max_new_tokens: int, sampling: Sampling) -> _Sequence:
    context = model.config.max_position_embeddings
    if not 0 < len(prompt) < context:
        raise ConfigError(
            "E-CFG-44",
            f"prompt {index} has {len(prompt)} tokens; the model's context holds {context} with the answer",
            place="generation",
            fix="Shorten the prompt" if prompt else "Give a prompt",
        )
    max_length = min(len(prompt) + max_new_tokens, context)
    return _Sequence(index, list(prompt), len(prompt), max_length, sampling.generator(index))


class _Batch:
    """The sequences of one call: waiting, living (in the order of the cache's rows), or ended."""

    def __init__(
        self,
        model: CausalLM,
        sequences: Sequence[_Sequence],
        stop_ids: frozenset[int],
        sampling: Sampling,
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.stop_ids, self.sampling, self.on_token = model, stop_ids, sampling, on_token
        self.waiting = deque(sorted(sequences, key=lambda sequence: -sequence.max_length))
        self.living: list[_Sequence] = []
        config, weight = model.config, model.model.embed_tokens.weight
        self.device = weight.device
        self.cache = KVCache(config, dtype=weight.dtype, device=weight.device)
        self.max_cache_tokens = CACHE_BYTES // KVCache.bytes_per_token(config, weight.dtype)
        self.switch_length = config.original_max_position_embeddings if config.rope_scaling else None

    def advance(self) -> bool:
        """Make one pass of the model; return False when there is nothing left to do."""
        newcomers = self._admit()
        if newcomers:
            self._read_prompts(newcomers)
        elif self.living:
            self._step()
        return bool(self.waiting or self.living)

    def _admit(self) -> list[_Sequence]:
        """Take from the queue what is to be read now."""
        # While few rows are free, going on is better than a pass over a handful of prompts.
        if len(self.living) > MAX_SEQUENCES * 3 // 4:
            return []
        newcomers: list[_Sequence] = []
        num_tokens, longest = 0, max((sequence.max_length for sequence in self.living), default=0)
        while self.waiting:
            following = self.waiting[0]
            num_rows = len(self.living) + len(newcomers) + 1
            longest = max(longest, following.max_length, self.cache.num_columns)
            num_tokens += len(following.ids)
            is_full = num_rows > MAX_SEQUENCES or max(num_rows, self.cache.num_rows) * longest > self.max_cache_tokens
            if num_rows > 1 and (is_full or (newcomers and num_tokens > PROMPT_TOKENS)):
                break
            newcomers.append(self.waiting.popleft())
        return newcomers

    def _read_prompts(self, newcomers: list[_Sequence]) -> None:
        lengths = [len(sequence.ids) for sequence in newcomers]
        self.cache.begin_prompts(lengths)
        self.living += newcomers
        ids = [token for sequence in newcomers for token in sequence.ids]
        positions = [position for length in lengths for position in range(length)]
        ends = torch.tensor([0, *lengths]).cumsum(0)
        self._append(newcomers, self._logits(ids, positions, ends, ends[1:] - 1))

    def _step(self) -> None:
        self._begin_again_behind_switch()
        if not self.living:
            return
        ids = [sequence.ids[-1] for sequence in self.living]
        positions = list(self.cache.lengths)
        self.cache.begin_step()
        self._append(list(self.living), self._logits(ids, positions, torch.arange(len(ids) + 1), None))

    def _begin_again_behind_switch(self) -> None:
        """Send back to the queue whatever crosses LongRoPE's original length: all its keys change with the factors."""
        for row in reversed(range(len(self.living))):
            if self.switch_length is not None and self.cache.lengths[row] == self.switch_length:
                self.waiting.appendleft(self._release(row))

    def _logits(self, ids: list[int], positions: list[int], ends: torch.Tensor, rows_S: torch.Tensor | None) -> torch.Tensor:
        """Run the model over a packed pass; returns the next token's logits, (B, V)."""
        hidden_BD = self.model(
            torch.tensor(ids, device=self.device),
            torch.tensor(positions, device=self.device),
            ends.to(self.device, torch.int32),
            rows_S=None if rows_S is None else rows_S.to(self.device),
            cache=self.cache,
        )
        return self.model.logits(hidden_BD)

    def _append(self, sequences: list[_Sequence], logits_BV: torch.Tensor) -> None:
        """Put each sequence's next token behind it, and release those that end."""
        chosen = choose(logits_BV, self.sampling, [sequence.generator for sequence in sequences])
        for sequence, token in zip(sequences, chosen, strict=True):
            if token in self.stop_ids:
                sequence.stop_reason = "stop"
                continue
            sequence.ids.append(token)
            if self.on_token is not None:
                self.on_token(sequence.index, token)
            if len(sequence.ids) == sequence.max_length:
                sequence.stop_reason = "length"
        for row in reversed(range(len(self.living))):
            if self.living[row].stop_reason is not None:
                self._release(row)

    def _release(self, row: int) -> _Sequence:
        """Free the row of a living sequence; the last one moves there, as in the cache."""
        sequence, last = self.living[row], self.living.pop()
        self.cache.remove(row)
        if last is not sequence:
            self.living[row] = last
        return sequence
