"""The one internal form of a training row: who said what, and what of it is trained on.

data in: nothing → out: three small frozen nouns, Message, Conversation, Example. No reading, no encoding.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from lorakeet.errors import DataError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)
_REASONING = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: Role
    content: str
    train: bool | None = None
    """True or False if the row says so itself; None leaves it to the run's `learn` option."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """The assistant's calls as parsed JSON, `{"name": ..., "arguments": ...}`, in the order given."""
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row of training data, or the prompt of one generation."""

    messages: tuple[Message, ...]
    place: str = ""
    """Where it came from, for error messages: `train.jsonl:17`."""
    tools: tuple[dict[str, Any], ...] = field(default=())
    """Tool definitions that the row carries, as parsed JSON."""
    text: str | None = None
    """A row of plain text, supervised whole and without a template; `messages` is then empty."""

    @property
    def said(self) -> str:
        """All that the row says, as one text."""
        return self.text or "\n".join(message.content for message in self.messages)


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation as the model sees it: token ids and the spans that are supervised.

    `spans` are half-open (start, end) index pairs into `input_ids`, in order, not touching each other's tokens:
    the token at every index inside a span is a training target, predicted from the tokens before it. No span
    starts at 0, since nothing predicts the first token.
    """

    input_ids: list[int]
    spans: tuple[tuple[int, int], ...]
    place: str = ""
    num_cut: int = 0
    """Tokens that truncation took away at the left."""

    @property
    def num_supervised_tokens(self) -> int:
        """Number of tokens that are training targets."""
        return sum(end - start for start, end in self.spans)


def with_system_prompt(conversation: Conversation, text: str, *, replace_existing: bool = False) -> Conversation:
    """Open the conversation with a system prompt; one that is there already stays unless it is to be replaced."""
    if conversation.text is not None:
        return conversation
    messages = conversation.messages
    has_one = bool(messages) and messages[0].role == "system"
    if has_one and not replace_existing:
        return conversation
    rest = messages[1:] if has_one else messages
    return replace(conversation, messages=(Message("system", text), *rest))


def joined(conversation: Conversation) -> Conversation:
    """Join turns of one role that follow each other, with a blank line between them.

    Answers of tools stay apart, since each belongs to a call; so do turns of different names, and what follows a call.

    Raises DataError if one of two turns is marked to be trained on and the other is not.
    """
    messages: list[Message] = []
    for i, message in enumerate(conversation.messages):
        last = messages[-1] if messages else None
        if last is None or message.role == "tool" or last.tool_calls or (last.role, last.name) != (message.role, message.name):
            messages.append(message)
            continue
        if last.train is not message.train:
            raise DataError(
                "E-DATA-194",
                f"messages[{i}] cannot be joined with the turn before it: only one of them is marked to be trained on or not",
                place=conversation.place,
                fix="Mark both alike",
            )
        content = "\n\n".join(text for text in (last.content, message.content) if text)
        messages[-1] = replace(last, content=content, tool_calls=message.tool_calls)
    return replace(conversation, messages=tuple(messages))


def split_reasoning(content: str) -> tuple[str, str]:
    """Split an answer that opens with <think> text into the reasoning and what follows; there may be none."""
    found = _REASONING.match(content)
    return (found[1], content[found.end() :]) if found else ("", content)
