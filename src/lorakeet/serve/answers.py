"""One request's answers as they come: tokens from the engine's thread → text, stop strings, tool calls.

data in: engine requests → out: pieces of text on the event loop, choice by choice, and a reason at the end of each.
Whoever stops listening stops the generation.
"""

import asyncio
import contextlib
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import LorakeetError, ServerError
from lorakeet.infer.engine import Request, Stream, Token
from lorakeet.infer.text_stream import TextStream
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


class StopText:
    """Hold back what may be the beginning of a stop string, and cut the text where one is complete."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = [stop for stop in stops if stop], ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """Take more text; returns what is certain to stand before any stop string."""
        held = self._held + text
        found = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """Return what was held back for nothing."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass
class _Choice:
    """One sequence, its text so far and its stop strings."""

    text: TextStream
    stop: StopText
    stream: Stream | None = None
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

    def start(self) -> None:
        """Put all choices into the engine's queue. Raises: LorakeetError if one of them cannot be answered."""
        loop = asyncio.get_running_loop()

        def report(choice: int, event: Token | Stream) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody listens
                loop.call_soon_threadsafe(self._events.put_nowait, (choice, event))

        for at, request in enumerate(self.requests):
            choice = _Choice(TextStream(self.tokenizer), StopText(self.stops))
            self._choices.append(choice)
            choice.stream = self.worker.start(replace(request, on_token=partial(report, at), on_end=partial(report, at)))
            self.metrics.opened()

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, once."""
        return len(self.requests[0].prompt)

    @property
    def usage(self) -> dict[str, Any]:
        """Count tokens as OpenAI does."""
        generated = sum(choice.num_tokens for choice in self._choices)
        cached = max((choice.stream.num_cached_tokens for choice in self._choices if choice.stream is not None), default=0)
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.num_prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    async def deltas(self, is_gone: Any = None) -> AsyncIterator[Delta]:
        """Yield what comes, choice by choice; leaving early cancels the rest.

        Args:
            is_gone: awaited now and then; returns whether the client has left.
        Raises: the error of a choice that fails; E-SRV-278 if time is over.
        """
        open_choices, listened = len(self._choices), self._began
        try:
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
                    if delta.text or delta.tokens or delta.finish_reason:
                        yield delta
        finally:
            self.metrics.tokens(self.num_prompt_tokens, sum(choice.num_tokens for choice in self._choices))
            for choice in self._choices:
                self.metrics.closed()
                if choice.stream is not None:
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
            return [Delta(at, text, finish_reason="stop" if event.stop_reason != "length" else "length")]
        if not any(other.num_tokens for other in self._choices):
            self.metrics.first_token(time.monotonic() - self._began)
        choice.num_tokens += 1
        text = choice.stop.push(choice.text.push(event.id))
        finish = "stop" if choice.stop.is_stopped else None
        if finish is not None and choice.stream is not None:
            self.worker.cancel(choice.stream)
        return [Delta(at, text, (event,), finish)]


def parse_tool_calls(text: str, names: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """Take tool calls out of an answer: (what else it says, calls in OpenAI's form); without any, (text, []).

    The calls stand at the end: as JSON, one object or a list of them with name and arguments, or in <tool_call> tags.
    """
    tagged = re.findall(r"<tool_call>\s*(.*?)\s*</tool_call>", text, re.DOTALL)
    if tagged:
        calls = [call for part in tagged for call in _calls(part, names)]
        if calls:
            return text[: text.index("<tool_call>")].strip(), calls
    for start in (0, *(found.end() for found in re.finditer(r"\n", text))):
        if text[start : start + 1] in ("[", "{") or text[start:].lstrip()[:1] in ("[", "{"):
            calls = _calls(text[start:], names)
            if calls:
                return text[:start].strip(), calls
    return text, []


def _calls(text: str, names: Sequence[str]) -> list[dict[str, Any]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    items = value if isinstance(value, list) else [value]
    calls = []
    for item in items:
        if not isinstance(item, dict) or item.get("name") not in names:
            return []
        arguments = item.get("arguments", item.get("parameters", {}))
        function = {"name": item["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
        calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
    return calls


def status_of(error: LorakeetError) -> int:
    """Return the HTTP status of an error that stops a request."""
    statuses = {"E-SRV-270": 404, "E-SRV-277": 403, "E-SRV-278": 504, "E-SRV-279": 503, "E-SRV-280": 429, "E-MODEL-120": 500}
    return statuses.get(error.code, 400)
