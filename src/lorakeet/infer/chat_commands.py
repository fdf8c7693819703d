"""The commands of a chat: lines that begin with a slash, and act on the session instead of asking the model.

data in: a line → out: the session changed, and what there is to say about it. Reading, answering and showing are elsewhere.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path

from lorakeet.data.conversation import Message
from lorakeet.errors import ConfigError, LorakeetError
from lorakeet.files.durable import write_file
from lorakeet.formatting import count, duration
from lorakeet.infer.chat_session import ChatSession, Reply
from lorakeet.infer.sampling import Sampling
from lorakeet.lora.disable import disabled_adapters
from lorakeet.lora.inject import lora_layers

Write = Callable[[str], None]

HELP = """/system TEXT       begin again with this system prompt; without TEXT, with none
/reset             forget the conversation, keep the system prompt
/retry             answer the last question again
/undo              forget the last question and its answer
/adapter on|off    answer with the adapter, or as the base model
/compare TEXT      answer as the base and with the adapter, and keep neither
/set NAME VALUE    temperature, top_p, top_k, min_p, repetition_penalty, seed or max_new_tokens
/save FILE         write the conversation as one line of training data; /load FILE reads it back
/stats             tokens and speed of the last answer
/help              this list
/exit              leave (so does the end of the input)"""

_NUMBERS = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float, "seed": int}


class Chat:
    """A session with what its commands remember."""

    def __init__(self, session: ChatSession, write: Write, note: Write) -> None:
        self.session, self.write, self.note = session, write, note
        self.uses_adapter = True
        self.last: Reply | None = None
        self.commands: dict[str, Callable[[str], None]] = {
            f"/{name}": getattr(self, f"_{name}")
            for name in ("system", "reset", "retry", "undo", "adapter", "compare", "set", "save", "load", "stats", "help")
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
        """Answer a question; one that fails or is interrupted leaves no trace."""
        try:
            with nullcontext() if self.uses_adapter else disabled_adapters(self.session.chat_model.model):
                self.last = self.session.ask(text, on_text=self.write)
        except KeyboardInterrupt:
            self.write("\n")
            self.note("Interrupted; this question and its answer are forgotten.")
        except LorakeetError as error:
            self.note(f"{error} /reset begins again.")
        else:
            self.write("\n")
            if self.last.stop_reason == "length":
                self.note("Cut off: the limit of new tokens or the model's context is reached.")

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

    def _adapter(self, state: str) -> None:
        if not self._has_adapter():
            return
        if state not in ("on", "off"):
            raise ConfigError("E-CFG-270", f'"/adapter {state}" is neither on nor off', place="chat", fix="Type /adapter off")
        self.uses_adapter = state == "on"
        self.note("Answers with the adapter." if self.uses_adapter else "Answers as the base model.")

    def _has_adapter(self) -> bool:
        has_one = any(True for _ in lora_layers(self.session.chat_model.model))
        if not has_one:
            self.note("This model has no adapter.")
        return has_one

    def _compare(self, text: str) -> None:
        if not text or not self._has_adapter():
            self.note("Type /compare and a question.")
            return
        used, said = self.uses_adapter, list(self.session.messages)
        try:
            for name, uses in (("Base", False), ("Tuned", True)):
                self.note(f"{name}:")
                self.uses_adapter = uses
                self.answer(text)
                self.session.messages[:] = said
        finally:
            self.uses_adapter = used

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
            names = ", ".join([*(field.name for field in fields(Sampling)), "max_new_tokens"])
            found = f'"/set {text}" is no setting'
            raise ConfigError("E-CFG-271", found, place="chat", fix=f"Set one of {names} to a number") from None
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
        self.note(
            f"Prompt of {count(last.num_prompt_tokens, 'token')}; answer of {speed}; {count(num_messages, 'message')} so far."
        )

    def _help(self, _: str) -> None:
        self.note(HELP)


def run_chat(session: ChatSession, read: Callable[[], str | None], write: Write, note: Write) -> None:
    """Read questions and commands until there are no more, and answer them.

    Args:
        read: returns the next line, or None at the end of the input.
        write: takes the text of answers.
        note: takes everything else there is to say: help, errors.
    """
    chat = Chat(session, write, note)
    while (line := read()) is not None:
        if not chat.take(line):
            return
