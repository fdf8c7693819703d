"""Chat templates: a conversation becomes a list of pieces, each of which is a control token, context, or an answer.

data in: Conversation → out: pieces, in order. No tokenizing (encode.py) and no string search: what is an answer is
known because this file writes it. The known families are rows of one table, LAYOUTS; any other template runs as
Jinja in a sandboxed process (jinja.py).
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.templates.piece import Kind, Piece
from lorakeet.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lorakeet.data.tokenizer import Tokenizer


class Template(Protocol):
    """What encode.py needs of a template."""

    @property
    def name(self) -> str:
        """What the template is called in messages and options."""

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever rendering changes."""

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> list[Piece]:
        """Write the conversation as pieces; with add_generation_prompt it ends where the next answer begins."""

    def holds_answer(self, decoded: str, message: Message) -> bool:
        """Tell whether the decoded text of a span, without its end token, is the message's answer."""


@dataclass(frozen=True)
class Layout:
    """A template that is a header, the content and an end token around every message."""

    name: str
    open: str
    """Control token before the role, or "" where the role itself is a control token."""
    sep: str
    """Control token after the role."""
    after_header: str
    end: str
    after_end: str
    bos: str = ""
    eos: str = ""
    """Written at the very end where no answer is to follow."""
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

        Raises DataError for a role the template has no place for: it would vanish from what is learned.
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
        """Put JSON behind a message's own content, inside the template's control tokens where it has them."""
        if marks[0]:
            return [Piece(marks[0], "control", turn), Piece(text, kind, turn), Piece(marks[1], "control", turn)]
        return [Piece(("\n" if content else "") + text, kind, turn)]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names)


_SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_PHI3 = Layout("phi3-mini", open="", sep="", after_header="\n", end="<|end|>", after_end="\n", eos="<|endoftext|>")
_PHI3_OLD = replace(_PHI3, name="phi3-mini-2024-04", bos="<s>", eos="", roles=("user", "assistant"), header_after_user=True)
_CHATML = Layout(
    "chatml",
    open="<|im_start|>",
    sep="",
    after_header="\n",
    end="<|im_end|>",
    after_end="\n",
    roles=("system", "user", "assistant", "tool"),
)
_PHI4 = Layout("phi4", open="<|im_start|>", sep="<|im_sep|>", after_header="", end="<|im_end|>", after_end="")

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        _PHI3,
        _PHI3_OLD,
        replace(_PHI3, name="phi3.5", skips_empty_system=True),
        replace(_PHI3_OLD, name="phi3-medium"),
        replace(_PHI3_OLD, name="phi3-medium-no-bos", bos=""),
        Layout(
            "phi4-mini",
            open="",
            sep="",
            after_header="",
            end="<|end|>",
            after_end="",
            eos="<|endoftext|>",
            roles=("system", "user", "assistant", "tool"),
            tool_call=("<|tool_call|>", "<|/tool_call|>"),
            tools=("<|tool|>", "<|/tool|>"),
        ),
        _PHI4,
        replace(_PHI4, name="phi4-2024-12", header_after_user=True),
        _CHATML,
        replace(_CHATML, name="smollm2", default_system=_SMOLLM2_SYSTEM),
    )
}

# Template texts known to be one of the layouts, by the first 16 digits of the hash of their normalised text.
# tests/data/templates holds the texts, and the tests compare every layout with Jinja's own rendering of them.
KNOWN_TEXTS: dict[str, str] = {
    "6ad7332629320d55": "phi3-mini",
    "f04b8cfaf9530ff1": "phi3-mini-2024-04",
    "8f57e2188119ea1e": "phi3.5",
    "7d0211eb1ecc35e7": "phi3-medium-no-bos",
    "dc77338c836a36f5": "phi4-mini",
    "a006328b5ffb8ef5": "phi4",
    "14e93d3241da69ea": "phi4-2024-12",
    "e0af03005c68e8ae": "chatml",
    "2b826aefcc3880ae": "smollm2",
}


def normalized_hash(text: str) -> str:
    """Hash a template's text, blind to how its line breaks and concatenations are spelled."""
    text = text.replace("\\n", "\n").replace('"', "'").replace("' + '", "").replace("'+'", "")
    # Whitespace outside of quotes means nothing inside Jinja's braces; the texts known here have none outside them.
    parts = text.split("'")
    parts[::2] = [re.sub(r"\s+", "", part) for part in parts[::2]]
    return hashlib.sha256("'".join(parts).encode()).hexdigest()[:16]


def template_for(tokenizer: "Tokenizer", *, name: str | None = None) -> Template:
    """Choose the template: by name, else by the tokenizer's own template text, else by its control tokens.

    Raises ConfigError for an unknown name, for a vocabulary that lacks the template's control tokens, and where
    nothing tells which template the model was trained with.
    """
    if name is not None and name != "jinja":
        if name not in LAYOUTS:
            raise ConfigError(
                "E-CFG-121", f'unknown template "{name}"', place="--template", fix=f"Known: {', '.join(LAYOUTS)}, jinja"
            )
        return _fit(LAYOUTS[name], tokenizer)
    if tokenizer.chat_template is not None:
        known = KNOWN_TEXTS.get(normalized_hash(tokenizer.chat_template)) if name is None else None
        if known is not None:
            return _fit(LAYOUTS[known], tokenizer)
        from lorakeet.data.templates.jinja import JinjaTemplate

        return JinjaTemplate(tokenizer)
    for candidate in ("phi4", "chatml", "phi4-mini", "phi3-mini"):
        wanted = LAYOUTS[candidate].control | set(LAYOUTS[candidate].tools) - {""}
        if name is None and wanted <= tokenizer.control_tokens.keys():
            return LAYOUTS[candidate]
    raise ConfigError(
        "E-CFG-122",
        "the tokenizer has no chat template and its control tokens tell none",
        place=tokenizer.place,
        fix="Name one with --template",
    )


def _fit(layout: Layout, tokenizer: "Tokenizer") -> Layout:
    """Give the layout the tokenizer's own bos and eos, and check that its control tokens exist."""
    if layout.bos and tokenizer.bos_token:
        layout = replace(layout, bos=tokenizer.bos_token)
    if layout.eos and tokenizer.eos_token:
        layout = replace(layout, eos=tokenizer.eos_token)
    missing = sorted(layout.control - tokenizer.control_tokens.keys())
    if missing:
        raise ConfigError(
            "E-CFG-123",
            f"the template {layout.name} needs tokens that the vocabulary lacks: {', '.join(missing)}",
            place=tokenizer.place,
            fix="Name a template that fits the model with --template",
        )
    return layout
