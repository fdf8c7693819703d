"""How answers are written: OpenAI's chat and plain completions, whole or as server-sent events.

data in: what is new in each choice → out: JSON bodies, or the events of a stream. Nothing is generated here. The form of
OpenAI's responses is in responses.py.
"""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

from lorakeet.infer.engine import Token
from lorakeet.infer.text_stream import REPLACEMENT
from lorakeet.serve.answers import Delta
from lorakeet.serve.tool_calls import parse_tool_calls

DONE = "data: [DONE]\n\n"


def event(value: dict[str, Any], kind: str | None = None) -> str:
    """Write one server-sent event."""
    head = f"event: {kind}\n" if kind else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n"


class Form(ABC):
    """How an answer is written: whole, or as events."""

    def opening(self, n: int) -> list[str]:
        """Return what comes before the first token of `n` choices."""
        return []

    @abstractmethod
    def events(self, delta: Delta) -> list[str]:
        """Return the events of what is new."""

    @abstractmethod
    def closing(self, usage: dict[str, Any], *, include_usage: bool) -> list[str]:
        """Return what comes when all choices have ended."""

    @abstractmethod
    def whole(self, parts: list[list[Delta]], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the body of all choices, each as the list of its parts."""


class _CompletionForm(Form):
    """What chat and plain completions share."""

    prefix, name, chunk_name = "", "", ""

    def __init__(self, model: str, decode: Callable[[Sequence[int]], str], *, with_logprobs: bool) -> None:
        self.model, self.decode, self.with_logprobs = model, decode, with_logprobs
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())

    def head(self, name: str) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    def chunk(self, choice: int, finish_reason: str | None, logprobs: Any, **content: Any) -> str:
        one = {"index": choice, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        return event({**self.head(self.chunk_name), "choices": [one]})

    def closing(self, usage: dict[str, Any], *, include_usage: bool) -> list[str]:
        last = [event({**self.head(self.chunk_name), "choices": [], "usage": usage})] if include_usage else []
        return [*last, DONE]

    def whole(self, parts: list[list[Delta]], usage: dict[str, Any]) -> dict[str, Any]:
        choices = [self.choice(at, deltas) for at, deltas in enumerate(parts)]
        return {**self.head(self.name), "choices": choices, "usage": usage}

    @abstractmethod
    def choice(self, at: int, deltas: list[Delta]) -> dict[str, Any]: ...


class ChatForm(_CompletionForm):
    """OpenAI's chat completions. With tools an answer is written when it is complete: only then it is known what it is."""

    prefix, name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self, model: str, decode: Callable[[Sequence[int]], str], *, with_logprobs: bool, tools: Sequence[str] = ()
    ) -> None:
        super().__init__(model, decode, with_logprobs=with_logprobs)
        self.tools = tools
        self.held: dict[int, list[Delta]] = {}

    def opening(self, n: int) -> list[str]:
        return [self.chunk(at, None, None, delta={"role": "assistant", "content": ""}) for at in range(n)]

    def events(self, delta: Delta) -> list[str]:
        if self.tools:
            return self.held_back(delta)
        events = []
        if delta.text or (delta.tokens and self.with_logprobs):
            events.append(self.chunk(delta.choice, None, self.logprobs(delta.tokens), delta={"content": delta.text}))
        if delta.finish_reason is not None:
            events.append(self.chunk(delta.choice, delta.finish_reason, None, delta={}))
        return events

    def held_back(self, delta: Delta) -> list[str]:
        """Return nothing until the choice has ended, and then all of it."""
        held = self.held.setdefault(delta.choice, [])
        held.append(delta)
        if delta.finish_reason is None:
            return []
        message, finish = self.message(held)
        calls = [{"index": at, **call} for at, call in enumerate(message.get("tool_calls", ()))]
        content = {"content": message["content"], **({"tool_calls": calls} if calls else {})}
        logprobs = self.logprobs([token for part in held for token in part.tokens])
        return [self.chunk(delta.choice, None, logprobs, delta=content), self.chunk(delta.choice, finish, None, delta={})]

    def choice(self, at: int, deltas: list[Delta]) -> dict[str, Any]:
        message, finish = self.message(deltas)
        logprobs = self.logprobs([token for delta in deltas for token in delta.tokens])
        return {"index": at, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def message(self, deltas: list[Delta]) -> tuple[dict[str, Any], str | None]:
        """Return the whole message of a choice, and why it ended."""
        text, finish = "".join(delta.text for delta in deltas), deltas[-1].finish_reason if deltas else "stop"
        text, calls = parse_tool_calls(text, self.tools) if self.tools else (text, [])
        if calls:
            return {"role": "assistant", "content": text or None, "tool_calls": calls}, "tool_calls"
        return {"role": "assistant", "content": text}, finish

    def logprobs(self, tokens: Iterable[Token]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        return {"content": [{**self.entry(token.id, token.logprob), "top_logprobs": self.top(token)} for token in tokens]}

    def top(self, token: Token) -> list[dict[str, Any]]:
        return [self.entry(id, logprob) for id, logprob in token.likeliest]

    def entry(self, id: int, logprob: float | None) -> dict[str, Any]:
        text = self.decode([id])
        # A token may be a part of a character; then its text does not say which bytes.
        return {"token": text, "logprob": _finite(logprob), "bytes": None if REPLACEMENT in text else list(text.encode())}


class TextForm(_CompletionForm):
    """OpenAI's plain completions."""

    prefix, name, chunk_name = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, decode: Callable[[Sequence[int]], str], *, with_logprobs: bool) -> None:
        super().__init__(model, decode, with_logprobs=with_logprobs)
        self.offsets: dict[int, int] = {}

    def events(self, delta: Delta) -> list[str]:
        if not (delta.text or delta.finish_reason or (delta.tokens and self.with_logprobs)):
            return []
        return [self.chunk(delta.choice, delta.finish_reason, self.logprobs(delta.choice, delta.tokens), text=delta.text)]

    def choice(self, at: int, deltas: list[Delta]) -> dict[str, Any]:
        logprobs = self.logprobs(at, [token for delta in deltas for token in delta.tokens])
        text, finish = "".join(delta.text for delta in deltas), deltas[-1].finish_reason if deltas else "stop"
        return {"index": at, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def logprobs(self, choice: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """Return what is asked for of a choice's next tokens; their offsets go on behind those before."""
        if not self.with_logprobs:
            return None
        texts = [self.decode([token.id]) for token in tokens]
        *offsets, self.offsets[choice] = accumulate(map(len, texts), initial=self.offsets.get(choice, 0))
        return {
            "tokens": texts,
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [{self.decode([id]): _finite(value) for id, value in token.likeliest} for token in tokens],
            "text_offset": offsets,
        }


def _finite(logprob: float | None) -> float | None:
    """Return a logprob that JSON can hold; OpenAI writes -9999 for what cannot happen."""
    return logprob if logprob is None or logprob > -9999.0 else -9999.0
