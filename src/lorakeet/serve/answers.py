"""One request's answers as they come: tokens from the engine's thread → text, up to a stop string.

data in: engine requests → out: pieces of text on the event loop, choice by choice, and a reason at the end of each. Whoever
starts answers closes them, which stops what still is generated. How they are written is in forms.py.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import LorakeetError, ServerError
from lorakeet.infer.engine import Request, Stream, Token
from lorakeet.infer.text_stream import StopText, TextStream
from lorakeet.serve.metrics import Metrics
from lorakeet.serve.worker import Worker

LISTEN_SECONDS = 0.25
"""How often a waiting answer looks whether its client is still there."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in one choice."""

    choice: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None


@dataclass
class _Choice:
    """One sequence, its text so far and its stop strings."""

    text: TextStream
    stop: StopText
    stream: Stream
    num_tokens: int = 0


@dataclass
class Answers:
    """The choices of one request, from the first token to the last."""

    worker: Worker
    tokenizer: Tokenizer
    metrics: Metrics
    requests: Sequence[Request]
    stops: Sequence[str] = ()
    seconds: float = 600.0
    _events: "asyncio.Queue[tuple[int, Token | Stream]]" = field(default_factory=asyncio.Queue)
    _choices: list[_Choice] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _is_closed: bool = False

    def start(self) -> None:
        """Put all choices into the engine's queue. Raises: LorakeetError if one of them cannot be answered."""
        loop = asyncio.get_running_loop()

        def report(choice: int, event: Token | Stream) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody listens
                loop.call_soon_threadsafe(self._events.put_nowait, (choice, event))

        try:
            for at, request in enumerate(self.requests):
                stream = self.worker.start(replace(request, on_token=partial(report, at), on_end=partial(report, at)))
                self._choices.append(_Choice(TextStream(self.tokenizer), StopText(self.stops), stream))
                self.metrics.opened()
        except LorakeetError:
            self.close()
            raise

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, once."""
        return len(self.requests[0].prompt)

    @property
    def usage(self) -> dict[str, Any]:
        """Count tokens as OpenAI does."""
        generated = sum(choice.num_tokens for choice in self._choices)
        cached = max((choice.stream.num_cached_tokens for choice in self._choices), default=0)
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.num_prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    async def deltas(self, is_gone: Callable[[], Awaitable[bool]] | None = None) -> AsyncIterator[Delta]:
        """Yield what comes, choice by choice, until all choices have ended or the client has left.

        Args:
            is_gone: awaited now and then; returns whether the client has left.
        Raises: the error of a choice that fails; E-SRV-278 if time is over.
        """
        open_choices, listened = len(self._choices), self._began
        while open_choices:
            now = time.monotonic()
            if now - self._began > self.seconds:
                raise ServerError("E-SRV-278", f"the answer took more than {self.seconds:g} s", fix="Ask for fewer tokens")
            if is_gone is not None and now - listened > LISTEN_SECONDS:
                listened = now
                if await is_gone():
                    return
            try:
                at, event = await asyncio.wait_for(self._events.get(), LISTEN_SECONDS)
            except (asyncio.TimeoutError, TimeoutError):
                continue
            for delta in self._take(at, event):
                open_choices -= delta.finish_reason is not None
                yield delta

    def close(self) -> None:
        """Cancel what still is generated, and count what was."""
        if self._is_closed:
            return
        self._is_closed = True
        self.metrics.tokens(self.num_prompt_tokens, sum(choice.num_tokens for choice in self._choices))
        for choice in self._choices:
            self.metrics.closed()
            self.worker.cancel(choice.stream)

    def _take(self, at: int, event: Token | Stream) -> list[Delta]:
        """Turn one event of the engine into text; nothing comes behind a stop string."""
        choice = self._choices[at]
        if choice.stop.is_stopped:
            return []
        if isinstance(event, Stream):
            if event.error is not None:
                raise event.error
            text = choice.stop.push(choice.text.finish()) + choice.stop.finish()
            is_cut = event.stop_reason == "length" and not choice.stop.is_stopped
            return [Delta(at, text, finish_reason="length" if is_cut else "stop")]
        if not any(other.num_tokens for other in self._choices):
            self.metrics.first_token(time.monotonic() - self._began)
        choice.num_tokens += 1
        text = choice.stop.push(choice.text.push(event.id))
        if choice.stop.is_stopped:
            self.worker.cancel(choice.stream)
        return [Delta(at, text, (event,), "stop" if choice.stop.is_stopped else None)]
