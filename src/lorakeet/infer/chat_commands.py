"""The commands of a chat: lines that begin with a slash, and act on the session instead of asking the model.

data in: a line → out: the session changed, and what there is to say about it. Reading, answering and showing are elsewhere.
"""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lorakeet.data.conversation import Message
from lorakeet.errors import ConfigError, LorakeetError
from lorakeet.files.durable import write_file
from lorakeet.formatting import count, duration
from lorakeet.infer.chat_session import ChatSession, Reply
from lorakeet.infer.sampling import Sampling

Write = Callable[[str], None]
Show = Callable[[], AbstractContextManager[Write]]
"""Returns what takes the pieces of one answer, and ends it when its block ends."""

HELP = """/system TEXT       begin again with this system prompt; without TEXT, with none
/reset             forget the conversation, keep the system prompt
/retry             answer the last question again
/undo              forget the last question and its answer
/adapter NAME      who answers: an adapter's name, on (the first), off (the base)
/compare TEXT      answer as the base and with every adapter, and keep nothing
/set NAME VALUE    temperature, top_p, top_k, min_p, repetition_penalty, seed or
                   max_new_tokens
/save FILE         write the conversation as one line of training data
/load FILE         go on with a conversation that /save wrote
/stats             tokens and speed of the last answer
/help              this list
/exit              leave (so does the end of the input)

Alt-Enter or a backslash at the end begins another line; Ctrl-C stops an answer."""

_NUMBERS = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float, "seed": int}
COMMANDS = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")]
SETTINGS = (*(field.name for field in fields(Sampling)), "max_new_tokens")


@contextmanager
def first_interrupt() -> Iterator[Callable[[], bool]]:
    """Return whether Ctrl-C was pressed inside the block, which it does not end; pressed again it raises KeyboardInterrupt."""
    presses: list[int] = []

    def take(number: int, frame: Any) -> None:
        presses.append(number)
        if len(presses) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, take)
    try:
        yield lambda: bool(presses)
    finally:
        signal.signal(signal.SIGINT, before)


class Chat:
    """A session with what its commands remember."""

    def __init__(self, session: ChatSession, show: Show, note: Write) -> None:
        self.session, self.show, self.note = session, show, note
        self.last: Reply | None = None
        self.commands: dict[str, Callable[[str], None]] = {
            name: getattr(self, f"_{name[1:]}") for name in COMMANDS if name != "/exit"
        }

    def take(self, line: str) -> bool:
        """Answer a line or obey it; return False if it asks to leave."""
        text = line.strip()
        command, _, argument = text.partition(" ")
        if command in ("/exit", "/quit"):
            return False
        if not text.startswith("/"):
            if text:
                self.answer(text)
        elif command in self.commands:
            try:
                self.commands[command](argument.strip())
            except LorakeetError as error:
                self.note(str(error))
        else:
            self.note(f"No command {command}.\n{HELP}")
        return True

    def answer(self, text: str) -> None:
        """Answer a question. Ctrl-C ends the answer where it is; one that fails leaves no trace."""
        try:
            with first_interrupt() as is_pressed, self.show() as write:
                self.last = self.session.ask(text, on_text=write, is_stopped=is_pressed)
        except KeyboardInterrupt:
            self.note("Interrupted; this question and its answer are forgotten.")
        except LorakeetError as error:
            self.note(f"{error} /reset begins again.")
        else:
            if self.last.stop_reason == "length":
                self.note("Cut off: the limit of new tokens or the model's context is reached.")
            elif self.last.stop_reason == "interrupted":
                self.note("Stopped. The conversation goes on from here; /undo forgets this answer, /retry asks again.")

    def _system(self, text: str) -> None:
        self.session.reset(text or None)
        self.note("New conversation with this system prompt." if text else "New conversation without a system prompt.")

    def _reset(self, _: str) -> None:
        self.session.reset(self.session.system)
        self.note("Conversation cleared.")

    def _pop(self) -> str | None:
        """Forget the last question and its answer; returns the question."""
        if not self.session.messages:
            self.note("Nothing has been asked.")
            return None
        question = self.session.messages[-2].content
        del self.session.messages[-2:]
        return question

    def _retry(self, _: str) -> None:
        question = self._pop()
        if question is not None:
            self.answer(question)

    def _undo(self, _: str) -> None:
        if self._pop() is not None:
            self.note("The last question and its answer are forgotten.")

    def _adapter(self, name: str) -> None:
        names = self.session.names
        if not names:
            self.note("This model has no adapter.")
            return
        known = {"on": names[0], "off": None, **{one: one for one in names}}
        if name not in known:
            found = f'"/adapter {name}" names no adapter'
            raise ConfigError("E-CFG-270", found, place="chat", fix=f"Type on, off or a name: {', '.join(names)}")
        self.session.use(known[name])
        self.note(f"Answers with {known[name]}." if known[name] else "Answers as the base model.")
        trained = self.session.adapters.get(known[name] or "")
        if trained is not None and trained.system != self.session.system:
            prompt = f"this system prompt: {trained.system}" if trained.system else "no system prompt"
            self.note(f"It was trained with {prompt}. /system begins again with it.")

    def _compare(self, text: str) -> None:
        session = self.session
        if not text or not session.names:
            self.note("Type /compare and a question." if session.names else "This model has no adapter.")
            return
        used, said = session.adapter, list(session.messages)
        try:
            for name in (None, *session.names):
                self.note(f"{name or 'base'}:")
                session.use(name)
                self.answer(text)
                session.messages[:] = said
                if self.last is not None and self.last.stop_reason == "interrupted":
                    break
        finally:
            session.use(used)

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        try:
            if name == "max_new_tokens" and int(value) > 0:
                self.session.max_new_tokens = int(value)
            else:
                self.session.sampling = replace(self.session.sampling, **{name: _NUMBERS[name](value)})
        except (KeyError, ValueError) as error:
            if isinstance(error, LorakeetError):
                raise
            found = f'"/set {text}" is no setting'
            raise ConfigError("E-CFG-271", found, place="chat", fix=f"Set one of {', '.join(SETTINGS)} to a number") from None
        self.note(f"{name} is {value}.")

    def _save(self, name: str) -> None:
        session, path = self.session, Path(name).expanduser()
        if not name or path.exists():
            reason = "is there already" if name else "no file is named"
            raise ConfigError("E-CFG-272", reason, place=name or "/save", fix="Name a file that is not there yet")
        opening = [Message("system", session.system)] if session.system is not None else []
        messages = [{"role": message.role, "content": message.content} for message in (*opening, *session.messages)]
        write_file(path, (json.dumps({"messages": messages}, ensure_ascii=False) + "\n").encode())
        self.note(f"Saved in {path}.")

    def _load(self, name: str) -> None:
        try:
            rows = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))["messages"]
            messages = [Message(row["role"], row["content"]) for row in rows]
            system = messages.pop(0).content if messages and messages[0].role == "system" else None
            asked = [message.role for message in messages]
            if asked != ["user", "assistant"] * (len(asked) // 2):
                raise ValueError("its turns do not alternate")
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"no conversation can be read: {error}"
            raise ConfigError("E-CFG-273", reason, place=name or "/load", fix="Name a file that /save wrote") from None
        self.session.reset(system)
        self.session.messages += messages
        self.note(f"Goes on after {count(len(messages) // 2, 'answer')}.")

    def _stats(self, _: str) -> None:
        if self.last is None:
            self.note("Nothing has been asked.")
            return
        last, num_messages = self.last, len(self.session.messages)
        speed = f"{count(last.num_answer_tokens, 'token')} in {duration(last.seconds)}, {last.tokens_per_second:.1f} a second"
        prompt = f"{count(last.num_prompt_tokens, 'token')}, {last.num_cached_tokens:,} of them known from before"
        self.note(f"Prompt of {prompt}; answer of {speed}; {count(num_messages, 'message')} so far.")

    def _help(self, _: str) -> None:
        self.note(HELP)


@contextmanager
def plain(write: Write) -> Iterator[Write]:
    """Show an answer as it is, with a line's end behind it."""
    yield write
    write("\n")


def run_chat(session: ChatSession, read: Callable[[], str | None], show: Show, note: Write) -> None:
    """Read questions and commands until there are no more, and answer them.

    Args:
        read: returns the next line, or None at the end of the input.
        show: shows one answer.
        note: takes everything else there is to say: help, errors.
    """
    chat = Chat(session, show, note)
    while (line := read()) is not None:
        if not chat.take(line):
            return
