"""The one generator: evaluation, chat and serving all get their answers here.

data in: requests, each a prompt as token ids → out: the ids that follow it, one by one, up to a stop id or a limit.

Requests wait in a queue. As many as fit are read in one packed pass; then every living sequence gets one token a
pass. They join and leave between any two passes: one that ends makes room, and waiting ones move up. Each may use an
adapter of its own, and draws by its own rules. It knows nothing of text or templates, and belongs to one thread.

B living sequences, T tokens of a pass, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch

from lorakeet.errors import ConfigError, LorakeetError, ModelError
from lorakeet.infer.mode import evaluating
from lorakeet.infer.native_step import NativeStep
from lorakeet.infer.prefixes import PrefixCache
from lorakeet.infer.sampling import GREEDY, Sampling, choose, penalize_repetition
from lorakeet.lora.per_row import Adapter, PerRowAdapters
from lorakeet.models.decoder import CausalLM
from lorakeet.models.kv_cache import KVCache

StopReason = Literal["stop", "length"]

MAX_SEQUENCES = 64
"""Sequences alive at once. More would not be faster: from about here a pass is bound by arithmetic."""
PROMPT_TOKENS = 4096
"""Prompt tokens read in one pass, unless a single prompt is longer."""
LEAST_SPARED = 64
"""Prompt tokens that must be spared for one prompt to be read in a pass before those that begin like it."""
CACHE_BYTES = 2 << 30
"""Size of the cache that is not exceeded by taking in more sequences; one sequence may always live."""
BEGINNING_BYTES = 256 << 20
"""Kept of what prompts begin with while several are answered: a system prompt of 1,000 tokens of a Phi-3-mini."""


class Constraint(Protocol):
    """What an answer may say, token by token; one object for each request."""

    def allow(self, logits_V: torch.Tensor) -> torch.Tensor:
        """Return the logits with minus infinity where a token must not come next."""
        ...

    def accept(self, token: int) -> None:
        """Take note of the token that came next."""
        ...


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer."""

    id: int
    logprob: float | None = None
    """Logarithm of its probability at temperature 1; None unless the request asks for it."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """The most likely tokens in its place, with theirs."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What follows one prompt."""

    ids: list[int]
    """Without the stop id that ended it."""
    stop_reason: StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt and how to go on behind it."""

    prompt: Sequence[int]
    stop_ids: Collection[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    index: int = 0
    """Draws from the sampling's seed + index."""
    adapter: Adapter | None = None
    """None for the model as it is."""
    num_logprobs: int | None = None
    """How many of the most likely tokens to report with each token; None for no logprobs at all."""
    constraint: Constraint | None = None
    on_token: Callable[[Token], None] | None = None
    """Told each token as it comes, without stop ids."""
    on_end: Callable[["Stream"], None] | None = None
    """Told when no more will come: ended, failed or cancelled."""


@dataclass(eq=False, slots=True)
class Stream:
    """A request and what has been generated behind it."""

    request: Request
    ids: list[int]
    max_length: int
    generator: torch.Generator
    stop_reason: StopReason | None = None
    error: LorakeetError | None = None
    is_cancelled: bool = False
    num_cached_tokens: int = 0
    """Tokens of the prompt that were not read, since a beginning was known."""

    @property
    def is_ended(self) -> bool:
        """Tell whether nothing more will come."""
        return self.stop_reason is not None or self.error is not None or self.is_cancelled

    @property
    def generation(self) -> Generation:
        """The whole answer. Raises: the error by which it failed."""
        if self.error is not None:
            raise self.error
        assert self.stop_reason is not None
        return Generation(self.ids[len(self.request.prompt) :], self.stop_reason)


def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    on_token: Callable[[int, int], None] | None = None,
    on_end: Callable[[], None] | None = None,
) -> list[Generation]:
    """Generate behind every prompt; greedy answers are those that the model gives without a cache, one by one.

    Generation ends with stop reason "length" after `max_new_tokens`, or where the model's context is full.

    Args:
        on_token: called with (index of the prompt, token id) as each token comes, without stop ids.
        on_end: called whenever an answer is whole.
    Raises: ConfigError if a prompt is empty or leaves no room in the model's context, or the limit is below 1.
    """

    def request(index: int, prompt: Sequence[int]) -> Request:
        report = None if on_token is None else lambda token: on_token(index, token.id)
        ended = None if on_end is None else lambda stream: on_end()
        return Request(
            prompt=prompt,
            stop_ids=stop_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            index=index,
            on_token=report,
            on_end=ended,
        )

    with evaluating(model):
        engine = Engine(model, prefix_bytes=BEGINNING_BYTES if len(prompts) > 1 else 0)
        sequences = [engine.prepare(request(index, prompt)) for index, prompt in enumerate(prompts)]
        for sequence in sorted(sequences, key=lambda sequence: -sequence.max_length):
            engine.enqueue(sequence)
        while engine.advance():
            pass
    return [sequence.generation for sequence in sequences]


class Engine:
    """The sequences of one model: waiting, living (in the order of the cache's rows), or ended.

    Call `advance` inside `evaluating(model)`, from one thread.
    """

    def __init__(self, model: CausalLM, *, prefix_bytes: int = 0) -> None:
        self.model = model
        self.waiting: deque[Stream] = deque()
        self.living: list[Stream] = []
        config, weight = model.config, model.model.embed_tokens.weight
        self.device = weight.device
        self.cache = KVCache(config, dtype=weight.dtype, device=weight.device)
        bytes_per_token = KVCache.bytes_per_token(config, weight.dtype)
        self.max_cache_tokens = CACHE_BYTES // bytes_per_token
        self.prefixes = PrefixCache(prefix_bytes, bytes_per_token)
        self.switch_length = config.switch_length
        self.adapters = PerRowAdapters(model)

    def submit(self, request: Request) -> Stream:
        """Let a request wait for its turn. Raises: ConfigError as `generate`."""
        return self.enqueue(self.prepare(request))

    def prepare(self, request: Request) -> Stream:
        """Check a request. Raises: ConfigError as `generate`."""
        context, length = self.model.config.max_position_embeddings, len(request.prompt)
        if request.max_new_tokens < 1:
            found = f"max_new_tokens is {request.max_new_tokens}"
            raise ConfigError("E-CFG-81", f"{found}; expected at least 1", place="generation")
        if not 0 < length < context:
            raise ConfigError(
                "E-CFG-44",
                f"prompt {request.index} has {length} tokens; the model's context holds {context} with the answer",
                place="generation",
                fix="Shorten the prompt" if request.prompt else "Give a prompt",
            )
        max_length = min(length + request.max_new_tokens, context)
        return Stream(request, list(request.prompt), max_length, request.sampling.generator(request.index))

    def enqueue(self, sequence: Stream) -> Stream:
        """Put a prepared sequence at the end of the queue."""
        self.waiting.append(sequence)
        return sequence

    def cancel(self, sequence: Stream) -> None:
        """Stop a sequence wherever it is; its place is free for the next pass."""
        if sequence.is_ended:
            return
        sequence.is_cancelled = True
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            self._report_end(sequence)
        else:
            self._release_ended()

    def advance(self) -> bool:
        """Make one pass of the model; return False when there is nothing left to do."""
        newcomers = self._admit()
        if newcomers:
            self._read_prompts(newcomers)
        elif self.living:
            self._step()
        return bool(self.waiting or self.living)

    def _admit(self) -> list[Stream]:
        """Take from the queue the sequences whose prompts are read in the next pass, first come, first served.

        A pass reads either whole prompts or one token of every living sequence, so every admission makes the living ones
        wait. Three limits hold a newcomer back:

        - rows: at most MAX_SEQUENCES live at once, and none is admitted until a quarter of them is free, since a pass
          over a handful of prompts would stop many answers for little;
        - memory: the cache is a rectangle of rows by columns, as wide as the longest sequence may become and never
          narrower or lower than it is now, and holds at most `max_cache_tokens`;
        - prompt tokens of one pass: PROMPT_TOKENS, which bounds how long the living ones wait.

        The first of an empty batch always goes in, however long: nothing else could ever make room for it. It goes alone
        if the others begin like it and need not read that afterwards.
        """
        if len(self.living) > MAX_SEQUENCES * 3 // 4:
            return []
        newcomers: list[Stream] = []
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
        return self._first_of_alike(newcomers)

    def _first_of_alike(self, newcomers: list[Stream]) -> list[Stream]:
        """Let the others wait for the first one if that spares them much: a system prompt that all share is read once."""
        if len(newcomers) < 2:
            return newcomers
        first, *others = newcomers
        key = self._prefix_key(first)
        alike = [other.ids for other in others if self._prefix_key(other) == key]
        if self.prefixes.num_spared(key, first.ids, alike) < LEAST_SPARED:
            return newcomers
        self.waiting.extendleft(reversed(others))
        return [first]

    def _read_prompts(self, newcomers: list[Stream]) -> None:
        known = [self.prefixes.find(self._prefix_key(sequence), sequence.ids) for sequence in newcomers]
        lengths = [len(sequence.ids) for sequence in newcomers]
        starts = [0 if beginning is None else beginning[1] for beginning in known]
        self.cache.begin_prompts(lengths, known)
        self.living += newcomers
        spans = [range(start, length) for start, length in zip(starts, lengths, strict=True)]
        ids = [sequence.ids[at] for sequence, span in zip(newcomers, spans, strict=True) for at in span]
        adapters = [sequence.request.adapter for sequence, span in zip(newcomers, spans, strict=True) for _ in span]
        ends = torch.tensor([0, *map(len, spans)]).cumsum(0)
        logits_BV = self._logits(ids, [at for span in spans for at in span], adapters, ends, (ends[1:] - 1).tolist())
        for sequence, start, span in zip(newcomers, starts, spans, strict=True):
            sequence.num_cached_tokens = start
            if start < len(span):  # else most of it is kept already, and the rest will be with its answer
                self._keep_beginning(sequence)
        self._append(newcomers, logits_BV)

    def _step(self) -> None:
        self._begin_again_behind_switch()
        if not self.living:
            return
        ids = [sequence.ids[-1] for sequence in self.living]
        positions = list(self.cache.lengths)
        adapters = [sequence.request.adapter for sequence in self.living]
        self.cache.begin_step()
        if self.native_step is not None and self.native_step.takes(adapters):
            logits_BV = self.native_step.logits(ids, self.cache, adapters)
        else:
            logits_BV = self._logits(ids, positions, adapters, torch.arange(len(ids) + 1), None)
        self._append(list(self.living), logits_BV)

    @cached_property
    def native_step(self) -> NativeStep | None:
        """What makes the steps of a few sequences fast, if it handles this model on this machine."""
        return NativeStep.of(self.model)

    def _begin_again_behind_switch(self) -> None:
        """Send back to the queue whatever crosses LongRoPE's original length: all its keys change with the factors."""
        for row in reversed(range(len(self.living))):
            if self.switch_length is not None and self.cache.lengths[row] == self.switch_length:
                self.waiting.appendleft(self._release(row))

    def _logits(
        self,
        ids: list[int],
        positions: list[int],
        adapters: Sequence[Adapter | None],
        ends: torch.Tensor,
        rows_S: list[int] | None,
    ) -> torch.Tensor:
        """Run the model over a packed pass; returns the next token's logits, (B, V)."""
        with self.adapters.of_rows(adapters, rows_S):
            hidden_BD = self.model(
                torch.tensor(ids, device=self.device),
                torch.tensor(positions, device=self.device),
                ends.to(self.device, torch.int32),
                rows_S=None if rows_S is None else torch.tensor(rows_S, device=self.device),
                cache=self.cache,
            )
            return self.model.logits(hidden_BD)

    def _append(self, sequences: list[Stream], logits_BV: torch.Tensor) -> None:
        """Put each sequence's next token behind it, and release those that end."""
        for sequence, token in zip(sequences, self._choose(sequences, logits_BV), strict=True):
            if token is None:
                continue
            request = sequence.request
            if token.id in request.stop_ids:
                sequence.stop_reason = "stop"
                continue
            sequence.ids.append(token.id)
            if request.constraint is not None:
                request.constraint.accept(token.id)
            if len(sequence.ids) == sequence.max_length:
                sequence.stop_reason = "length"
            if request.on_token is not None:
                request.on_token(token)
        self._release_ended()

    def _choose(self, sequences: list[Stream], logits_BV: torch.Tensor) -> list[Token | None]:
        """Choose every sequence's next token by its own rules; None for one that fails; its error is its own."""
        chosen: list[Token | None] = [None] * len(sequences)
        rows_by_rule: dict[Sampling, list[int]] = {}
        for row, sequence in enumerate(sequences):
            rows_by_rule.setdefault(sequence.request.sampling, []).append(row)
        for sampling, rows in rows_by_rule.items():
            logits_RV = logits_BV if len(rows) == len(sequences) else logits_BV[rows]
            allowed_RV = self._ruled([sequences[row] for row in rows], logits_RV)
            for row, logits_V, id in zip(rows, logits_RV, self._drawn(sequences, sampling, rows, allowed_RV), strict=True):
                chosen[row] = None if id is None else _with_logprobs(id, logits_V, sequences[row].request.num_logprobs)
        return chosen

    def _drawn(
        self, sequences: list[Stream], sampling: Sampling, rows: list[int], logits_RV: torch.Tensor
    ) -> Sequence[int | None]:
        """Draw for all rows at once, or one by one if that fails, so that each failure stays its own."""
        generators = [sequences[row].generator for row in rows]
        try:
            return choose(logits_RV, sampling, generators)
        except ModelError as error:
            if len(rows) == 1:
                sequences[rows[0]].error = error
                return [None]
        return [self._drawn(sequences, sampling, [row], logits_RV[at : at + 1])[0] for at, row in enumerate(rows)]

    def _ruled(self, sequences: list[Stream], logits_RV: torch.Tensor) -> torch.Tensor:
        """Apply what each request says of its tokens beyond chance; the logits given stay as they are."""
        is_changed = [s.request.constraint is not None or s.request.sampling.repetition_penalty != 1 for s in sequences]
        if not any(is_changed):
            return logits_RV
        ruled = list(logits_RV)
        for row, (sequence, changed) in enumerate(zip(sequences, is_changed, strict=True)):
            if not changed:
                continue
            penalty, constraint = sequence.request.sampling.repetition_penalty, sequence.request.constraint
            if penalty != 1:
                ruled[row] = penalize_repetition(ruled[row], sequence.ids, penalty)
            if constraint is not None:
                ruled[row] = constraint.allow(ruled[row])
        return torch.stack(ruled)

    def _prefix_key(self, sequence: Stream) -> Hashable:
        """Return whose keys and values a sequence may share: its adapter's, with the same rotary factors."""
        adapter = sequence.request.adapter
        is_long = self.switch_length is not None and len(sequence.ids) > self.switch_length
        return None if adapter is None else adapter.key, is_long

    def _keep_beginning(self, sequence: Stream) -> None:
        """Keep a living sequence's keys and values for later prompts, if there is room for any."""
        row, key = self.living.index(sequence), self._prefix_key(sequence)
        ids = sequence.ids[: self.cache.lengths[row]]
        if 0 < len(ids) <= self.prefixes.max_tokens and not self.prefixes.knows(key, ids):
            self.prefixes.put(key, ids, self.cache.copy_out(row, len(ids)))

    def _release_ended(self) -> None:
        for row in reversed(range(len(self.living))):
            sequence = self.living[row]
            if sequence.is_ended:
                if sequence.error is None:
                    self._keep_beginning(sequence)
                self._release(row)
                self._report_end(sequence)

    def _release(self, row: int) -> Stream:
        """Free the row of a living sequence; the last one moves there, as in the cache."""
        sequence, last = self.living[row], self.living.pop()
        self.cache.remove(row)
        if last is not sequence:
            self.living[row] = last
        return sequence

    @staticmethod
    def _report_end(sequence: Stream) -> None:
        if sequence.request.on_end is not None:
            sequence.request.on_end(sequence)


def _with_logprobs(id: int, logits_V: torch.Tensor, num_logprobs: int | None) -> Token:
    """Return a token with the logprobs that are asked for."""
    if num_logprobs is None:
        return Token(id)
    logprobs_V = logits_V.float().log_softmax(-1)
    values, ids = logprobs_V.topk(num_logprobs) if num_logprobs else (logprobs_V[:0], logprobs_V[:0].long())
    return Token(id, float(logprobs_V[id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
