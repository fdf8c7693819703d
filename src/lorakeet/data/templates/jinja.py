"""Any other chat template: rendered as Jinja in a process of its own, its spans found by rendering prefixes.

data in: Conversation → out: pieces, as from template.py. The template comes from the model's directory, never from a
request. It runs in transformers' sandbox, inside a child process with limits on time, memory and size of the result.

How spans are found: the text up to an answer is what the template writes for the messages before it together with
the header that invites an answer; the answer then reaches to the first stop token. Both must be beginnings of the
whole text, or the row is refused: then training would not see what inference sends.
"""

import contextlib
import hashlib
import json
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import IO, Any

from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.templates.piece import Piece
from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import DataError, ModelError

MAX_SECONDS = 5.0
"""Time for all renderings of one row."""
MAX_CHARS = 16 * 1024 * 1024
"""Size of all renderings of one row."""
_START_SECONDS = 120.0
# Private-use characters: one that the row does not use breaks up the control tokens written in its content.
_MARKS = [chr(0x10FF00 + i) for i in range(0xFD)]


class JinjaTemplate:
    """A chat template of unknown origin, given as its text in the tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.chat_template is not None
        self.tokenizer = tokenizer
        self.name = "jinja"
        self._process: _Renderer | None = None

    def __reduce__(self) -> tuple:
        return JinjaTemplate, (self.tokenizer,)

    @cached_property
    def fingerprint(self) -> str:
        """A hash that changes whenever rendering changes."""
        return hashlib.sha256(f"jinja/{self.tokenizer.chat_template}".encode()).hexdigest()

    def holds_answer(self, decoded: str, message: Message) -> bool:
        """Tell whether a span is the message's answer: templates may trim it and may write calls their own way."""
        content = message.content.strip()
        return content in decoded if message.tool_calls or "<" in decoded else decoded.strip() == content

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> list[Piece]:
        """Write the conversation as pieces. Raises DataError if the template refuses it or changes earlier turns."""
        mark = next((mark for mark in _MARKS if mark not in repr(conversation)), None)
        if mark is None:
            raise DataError("E-DATA-128", "uses every private-use character", place=conversation.place)
        messages = [self._plain(message, mark) for message in conversation.messages]
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        wanted = [(len(messages), add_generation_prompt)]
        wanted += [request for i in answers for request in ((i, True), (i + 1, False))]
        tools = [self._broken_up(tool, mark) for tool in conversation.tools] or None
        whole, *parts = self._run(messages, tools, wanted, conversation.place)
        borders = []
        for i, before, after in zip(answers, parts[::2], parts[1::2], strict=True):
            end = self._end_of_answer(before, after, conversation.place, i)
            if not whole.startswith(after[:end]):
                raise _unstable(conversation.place, i)
            borders.append((len(before), end, i))
        return list(self._pieces(whole, borders, mark))

    def _plain(self, message: Message, mark: str) -> dict[str, Any]:
        """Write a message the way transformers passes it to templates."""
        plain: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            plain["tool_calls"] = [{"type": "function", "function": call} for call in message.tool_calls]
        if message.name is not None:
            plain["name"] = message.name
        return {key: value if key == "role" else self._broken_up(value, mark) for key, value in plain.items()}

    def _broken_up(self, value: Any, mark: str) -> Any:
        """Put a mark inside every control token's name that is content, so that it cannot be taken for the token."""
        if isinstance(value, str):
            return self.tokenizer.control_pattern.sub(lambda found: found[0][:1] + mark + found[0][1:], value)
        if isinstance(value, dict):
            return {self._broken_up(key, mark): self._broken_up(item, mark) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._broken_up(item, mark) for item in value]
        return value

    def _end_of_answer(self, before: str, after: str, place: str, turn: int) -> int:
        """Find where the end token of an answer ends."""
        if not after.startswith(before):
            raise _unstable(place, turn)
        for found in self.tokenizer.control_pattern.finditer(after, len(before)):
            if self.tokenizer.control_tokens[found[0]].id in self.tokenizer.stop_ids:
                return found.end()
        raise DataError(
            "E-DATA-129",
            f"messages[{turn}]: the chat template writes no stop token after an answer",
            place=place,
            fix="Name a template with --template, or add the end-of-turn token to generation_config.json",
        )

    def _pieces(self, whole: str, borders: list[tuple[int, int, int]], mark: str) -> Iterator[Piece]:
        """Cut rendered text at answers and control tokens."""
        at = 0
        for start, end, turn in [*borders, (len(whole), len(whole), -1)]:
            for stretch, in_turn in ((whole[at:start], -1), (whole[start:end], turn)):
                cursor = 0
                for found in self.tokenizer.control_pattern.finditer(stretch):
                    yield from _text(stretch[cursor : found.start()].replace(mark, ""), in_turn)
                    yield Piece(found[0], "control", in_turn)
                    cursor = found.end()
                yield from _text(stretch[cursor:].replace(mark, ""), in_turn)
            at = end

    def _run(self, messages: list[dict], tools: list | None, wanted: list[tuple[int, bool]], place: str) -> list[str]:
        """Render several beginnings of one conversation in the child process."""
        tokenizer = self.tokenizer
        if self._process is None:
            names = {
                "bos_token": tokenizer.bos_token,
                "eos_token": tokenizer.eos_token,
                "unk_token": tokenizer.unk_token,
                "pad_token": tokenizer.pad_token,
            }
            names = {key: value for key, value in names.items() if value is not None}
            self._process = _Renderer({"chat_template": tokenizer.chat_template, "names": names}, tokenizer)
        reply = self._process.ask({"messages": messages, "tools": tools, "wanted": wanted})
        if reply is None:
            self._process = None
            raise _hostile(f"took more than {MAX_SECONDS:g} s, and was stopped", tokenizer)
        if "hostile" in reply:
            raise _hostile(reply["hostile"], tokenizer)
        if "error" in reply:
            reason = " ".join(str(reply["error"]).split())[:200]
            raise DataError(
                "E-DATA-127",
                f"the model's chat template refuses the row: {reason}",
                place=place,
                fix="Change the row, or name a template with --template",
            )
        return reply["texts"]


def _hostile(reason: str, tokenizer: Tokenizer) -> ModelError:
    digest = hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest()[:16]
    return ModelError(
        "E-MODEL-75",
        f"the chat template (SHA-256 {digest}…) {reason}",
        place=tokenizer.place,
        fix="Name a template with --template",
    )


def _text(text: str, turn: int) -> Iterator[Piece]:
    if text:
        yield Piece(text, "answer" if turn >= 0 else "context", turn)


def _unstable(place: str, turn: int) -> DataError:
    return DataError(
        "E-DATA-126",
        f"messages[{turn}]: the model's chat template writes earlier turns differently once later ones follow",
        place=place,
        fix="Split the row so that it has one answer, or name a template with --template",
    )


class _Renderer:
    """The child process: JSON lines in, JSON lines out; killed when it takes too long."""

    def __init__(self, setup: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lorakeet.data.templates.jinja_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        ready = self._exchange({**setup, "max_chars": MAX_CHARS}, _START_SECONDS)
        if ready is None or "error" in ready:
            self.close()
            reason = " ".join(str((ready or {}).get("error", "it was stopped")).split())[:200]
            raise _hostile(f"cannot be used: {reason}", tokenizer)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Send one request; None if there was no answer in time, after which the child is gone."""
        with self.lock:  # a server renders for several requests at once
            reply = self._exchange(request, MAX_SECONDS)
            if reply is None:
                self.close()
            return reply

    def _exchange(self, message: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
            # Many short waits: a machine that was suspended for minutes has used up only one of them.
            waits = (select.select([self.process.stdout], [], [], 0.25)[0] for _ in range(int(seconds * 4)))
            if not any(waits):
                return None
            line = _whole_line(self.process.stdout)
        except OSError:
            return None
        return json.loads(line) if line else None


def _whole_line(pipe: IO[bytes]) -> bytes:
    """Read one line; the child writes it at once, after all its work."""
    return pipe.readline()
