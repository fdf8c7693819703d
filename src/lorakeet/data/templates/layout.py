"""A chat template in one shape: a header, the content and an end token around every message.

data in: Conversation → out: pieces, in order, each known to be a control token, context, or an answer, because it is
written here and not searched for. Which models use which layout says known.py; tokenizing is encode.py's.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.templates.piece import Kind, Piece
from lorakeet.errors import DataError


@dataclass(frozen=True)
class Layout:
    """A template that is a header, the content and an end token around every message."""

    name: str
    open: str
    """Control token before the role, or "" if the role itself is a control token."""
    sep: str
    """Control token after the role."""
    after_header: str
    end: str
    after_end: str
    bos: str = ""
    eos: str = ""
    """Written at the very end if no answer is to follow."""
    roles: tuple[str, ...] = ("system", "user", "assistant")
    default_system: str | None = None
    skips_empty_system: bool = False
    header_after_user: bool = False
    """The assistant's header belongs to the user's turn, whether an answer is asked for or not."""
    tool_call: tuple[str, str] = ("", "")
    """Control tokens around the assistant's tool calls."""
    tools: tuple[str, str] = ("", "")
    """Control tokens around the tool definitions in the system turn."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash that changes whenever rendering changes."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    writes_day: ClassVar[bool] = False

    def on(self, day: str | None) -> "Layout":
        """Return the template as it renders on a day: the same."""
        return self

    @property
    def control(self) -> set[str]:
        """The tokens the vocabulary must have."""
        roles = () if self.open else tuple(f"<|{role}|>" for role in self.roles if role in ("user", "assistant"))
        return {token for token in (self.open, self.sep, self.end, self.bos, self.eos, *roles) if token}

    @property
    def framing(self) -> set[str]:
        """The tokens that a conversation may hold many times."""
        return {self.open, self.sep, self.end, self.eos}

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> list[Piece]:
        """Write the conversation as pieces; with add_generation_prompt it ends where the next answer begins.

        Raises DataError for a role the template has no place for: it would silently be left out of training.
        """
        pieces = [Piece(self.bos, "control")] if self.bos else []
        previous = ""
        for turn, message in self._turns(conversation):
            if message.role not in self.roles:
                raise DataError(
                    "E-DATA-120",
                    f'the template {self.name} drops messages of role "{message.role}"',
                    place=f"{conversation.place} messages[{turn}]".strip(),
                    fix=f"Remove them, or name a template that has it with --template (here: {_list(self.roles)})",
                )
            if message.role == "assistant" and self.header_after_user and previous != "user":
                raise DataError(
                    "E-DATA-25",
                    f"the template {self.name} has no header for an answer that follows no user message",
                    place=f"{conversation.place} messages[{turn}]".strip(),
                    fix="Put a user message before it",
                )
            pieces += self._message(message, turn, conversation)
            previous = message.role
        if add_generation_prompt:
            if not self.header_after_user:
                pieces += self._header("assistant")
        elif self.eos:
            pieces.append(Piece(self.eos, "control"))
        return pieces

    def holds_answer(self, decoded: str, message: Message) -> bool:
        """Tell whether the decoded text of a span, without its end token, is the message's answer."""
        calls = "".join(piece.text for piece in self._calls(message, 0))
        return decoded == message.content + calls

    def _turns(self, conversation: Conversation) -> Iterator[tuple[int, Message]]:
        """Walk the messages with their indices, after the system turn that the template or the tools ask for."""
        messages = conversation.messages
        opens_with_system = bool(messages) and messages[0].role == "system"
        if not opens_with_system and (self.default_system is not None or conversation.tools):
            yield -1, Message("system", self.default_system or "")
        for turn, message in enumerate(messages):
            if self.skips_empty_system and message.role == "system" and not message.content and not conversation.tools:
                continue
            yield turn, message

    def _header(self, role: str) -> list[Piece]:
        opening = [Piece(self.open, "control"), Piece(role, "context")] if self.open else [Piece(f"<|{role}|>", "control")]
        closing = [Piece(self.sep, "control")] if self.sep else []
        after = [Piece(self.after_header, "context")] if self.after_header else []
        return [*opening, *closing, *after]

    def _message(self, message: Message, turn: int, conversation: Conversation) -> list[Piece]:
        is_answer = message.role == "assistant"
        pieces = [] if is_answer and self.header_after_user else self._header(message.role)
        kind: Kind = "answer" if is_answer else "context"
        pieces.append(Piece(message.content, kind, turn if is_answer else -1))
        pieces += self._calls(message, turn)
        if message.role == "system" and conversation.tools and turn <= 0:
            pieces += self._block(_json(list(conversation.tools)), self.tools, message.content, kind, -1)
        pieces.append(Piece(self.end, "control", turn if is_answer else -1))
        if self.after_end:
            pieces.append(Piece(self.after_end, "context"))
        if message.role == "user" and self.header_after_user:
            pieces += self._header("assistant")
        return [piece for piece in pieces if piece.text]

    def _calls(self, message: Message, turn: int) -> list[Piece]:
        if not message.tool_calls:
            return []
        calls = _json([{"name": call["name"], "arguments": call["arguments"]} for call in message.tool_calls])
        return self._block(calls, self.tool_call, message.content, "answer", turn)

    def _block(self, text: str, marks: tuple[str, str], content: str, kind: Kind, turn: int) -> list[Piece]:
        """Put JSON behind a message's own content, inside the template's control tokens if it has them."""
        if marks[0]:
            return [Piece(marks[0], "control", turn), Piece(text, kind, turn), Piece(marks[1], "control", turn)]
        return [Piece(("\n" if content else "") + text, kind, turn)]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names)
