"""Any other chat template: rendered as Jinja in a process of its own, its spans found by rendering prefixes.

data in: Conversation → out: pieces, as from template.py. The template comes from the model's directory, never from a
request. It runs in transformers' sandbox, inside a child process with limits on time, memory and size of the result.

How spans are found: the text up to an answer is what the template writes for the messages before it together with
the header that invites an answer; the answer then reaches to the first stop token. Where both are a beginning of the
whole text, that stretch is the answer's. Where they are not, since the template writes earlier turns differently once
later ones follow, the answer is context here, and encode_all.py gives it an example of its own, in which it is the last.
"""

import contextlib
import hashlib
import json
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date
from typing import IO, Any

from lorakeet.data.conversation import Conversation, Message, split_reasoning
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

    def __init__(self, tokenizer: Tokenizer, day: str | None = None) -> None:
        assert tokenizer.chat_template is not None
        self.tokenizer, self.day = tokenizer, day
        self.name = "jinja"

    def __reduce__(self) -> tuple:
        return JinjaTemplate, (self.tokenizer, self.day)

    def on(self, day: str | None) -> "JinjaTemplate":
        """Return the template as it renders on a day, YYYY-MM-DD; None is the day on which it renders."""
        return self if day == self.day else JinjaTemplate(self.tokenizer, day)

    @property
    def writes_day(self) -> bool:
        """Whether what is rendered depends on the day."""
        return "strftime_now" in (self.tokenizer.chat_template or "")

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever rendering changes."""
        day = self.day or date.today().isoformat() if self.writes_day else ""
        return hashlib.sha256(f"jinja/{day}/{self.tokenizer.chat_template}".encode()).hexdigest()

    def holds_answer(self, decoded: str, message: Message) -> bool:
        """Tell whether a span is the message's answer: templates may trim it and may write calls their own way."""
        (reasoning, answer), (found, rest) = split_reasoning(message.content), split_reasoning(decoded)
        if found.strip() != reasoning.strip():
            return False
        return answer.strip() in rest if message.tool_calls else rest.strip() == answer.strip()

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> list[Piece]:
        """Write the conversation as pieces. Raises DataError if the template refuses it or ends no answer."""
        mark = next((mark for mark in _MARKS if mark not in repr(conversation)), None)
        if mark is None:
            raise DataError("E-DATA-128", "uses every private-use character", place=conversation.place)
        messages = [self._plain(message, mark) for message in conversation.messages]
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        wanted = [(len(messages), add_generation_prompt)]
        wanted += [request for i in answers for request in ((i, True), (i + 1, False))]
        tools = [self._broken_up(tool, mark) for tool in conversation.tools] or None
        whole, *parts = self._run(messages, tools, wanted, conversation)
        borders: list[tuple[int, int, int]] = []
        # From the last to the first: the last decides what the others have to be beginnings of.
        for i, before, after in reversed(list(zip(answers, parts[::2], parts[1::2], strict=True))):
            start = _start_of_answer(before, after)
            end = self._end_of_answer(after, start, conversation.place, i)
            sent = before + after[start:end]
            if i == len(messages) - 1 and not add_generation_prompt:
                whole = sent + after[end:]
            if whole.startswith(sent):
                borders.insert(0, (len(before), len(sent), i))
        return list(self._pieces(whole, borders, mark))

    def _plain(self, message: Message, mark: str) -> dict[str, Any]:
        """Write a message the way transformers passes it to templates, its text unable to be taken for control tokens.

        The marks around an answer's reasoning alone are left: templates look for them, and the model writes them.
        """
        plain: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            plain["tool_calls"] = [{"type": "function", "function": call} for call in message.tool_calls]
        if message.name is not None:
            plain["name"] = message.name
        plain = {key: value if key == "role" else self._broken_up(value, mark) for key, value in plain.items()}
        reasoning, answer = split_reasoning(message.content)
        if message.role == "assistant" and answer != message.content:
            opening = message.content.partition("<think>")[0]
            plain["content"] = f"{opening}<think>{self._broken_up(reasoning, mark)}</think>{self._broken_up(answer, mark)}"
        return plain

    def _broken_up(self, value: Any, mark: str) -> Any:
        """Put a mark inside every control token's name that is content, so that it cannot be taken for the token."""
        if isinstance(value, str):
            return self.tokenizer.control_pattern.sub(lambda found: found[0][:1] + mark + found[0][1:], value)
        if isinstance(value, dict):
            return {self._broken_up(key, mark): self._broken_up(item, mark) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._broken_up(item, mark) for item in value]
        return value

    def _end_of_answer(self, after: str, start: int, place: str, turn: int) -> int:
        """Find where the end token of an answer ends."""
        for found in self.tokenizer.control_pattern.finditer(after, start):
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

    def _run(
        self, messages: list[dict], tools: list | None, wanted: list[tuple[int, bool]], conversation: Conversation
    ) -> list[str]:
        """Render several beginnings of one conversation in the child process."""
        tokenizer = self.tokenizer
        names = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        reply = _ask(
            {
                "chat_template": tokenizer.chat_template,
                "names": {key: value for key, value in names.items() if value is not None},
                "day": self.day or date.today().isoformat(),
                "messages": messages,
                "tools": tools,
                "wanted": wanted,
            },
            tokenizer,
        )
        if reply is None:
            raise _hostile(f"took more than {MAX_SECONDS:g} s, and was stopped", tokenizer)
        if "hostile" in reply:
            raise _hostile(reply["hostile"], tokenizer)
        if "error" in reply:
            reason = " ".join(str(reply["error"]).split())[:200]
            change = "Put the system prompt into the first user message" if "system" in reason.lower() else "Change the row"
            raise DataError(
                "E-DATA-127",
                f"the model's chat template refuses the row: {reason}",
                place=conversation.place,
                fix=f"{change}, or name a template with --template",
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


def _start_of_answer(before: str, after: str) -> int:
    """Find where in `after`, which ends with an answer, that begins which `before` invites.

    They need not begin alike, as Mistral writes the system prompt into the last user turn only while that is the last
    turn of all. Then the place is where the longest end of `before` that both have is over.
    """
    if after.startswith(before):
        return len(before)
    shared, too_long = 0, len(before) + 1
    while too_long - shared > 1:
        length = (shared + too_long) // 2
        shared, too_long = (length, too_long) if before[-length:] in after else (shared, length)
    return after.rfind(before[len(before) - shared :]) + shared


_LOCK = threading.Lock()
_child: "_Renderer | None" = None
"""One for all templates: starting it takes seconds."""


def _ask(request: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Let the child render; None if there was no answer in time, after which the child is gone."""
    global _child
    with _LOCK:  # a server renders for several requests at once
        if _child is None:
            _child = _Renderer(tokenizer)
        reply = _child.exchange(request, MAX_SECONDS)
        if reply is None:
            _child.close()
            _child = None
        return reply


class _Renderer:
    """The child process: JSON lines in, JSON lines out; killed when it takes too long."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lorakeet.data.templates.jinja_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        ready = self.exchange({"max_chars": MAX_CHARS}, _START_SECONDS)
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

    def exchange(self, message: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """Send one message; None if there was no answer in time."""
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
