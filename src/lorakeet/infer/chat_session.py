"""A conversation with a model, turn by turn, and the loop that reads it from a terminal or a pipe.

data in: lines of text → out: answers, streamed. The prompt of every turn is the whole conversation so far, encoded by
the one encode function of training.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

from lorakeet.chat_model import ChatModel
from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import encode
from lorakeet.errors import LorakeetError
from lorakeet.infer.engine import StopReason, generate
from lorakeet.infer.sampling import GREEDY, Sampling
from lorakeet.infer.text_stream import TextStream

HELP = """/system TEXT  begin again with this system prompt; without TEXT, with none
/reset        forget the conversation, keep the system prompt
/help         this list
/exit         leave (so does the end of the input)"""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer and how it came about."""

    text: str
    num_prompt_tokens: int
    num_answer_tokens: int
    stop_reason: StopReason
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens by the time from question to end, reading the prompt included."""
        return self.num_answer_tokens / self.seconds


@dataclass
class ChatSession:
    """A conversation that grows with every question; `messages` is what has been said after the system prompt."""

    chat_model: ChatModel
    system: str | None = None
    max_new_tokens: int = 512
    sampling: Sampling = GREEDY
    messages: list[Message] = field(default_factory=list)

    @property
    def stop_ids(self) -> Collection[int]:
        """The ids that end an answer."""
        return self.chat_model.tokenizer.stop_ids

    def reset(self, system: str | None = None) -> None:
        """Forget what has been said, and open the conversation with `system`."""
        self.system = system
        self.messages.clear()

    def ask(self, text: str, on_text: Callable[[str], None] | None = None) -> Reply:
        """Answer `text`; `on_text` gets the answer in pieces as it comes. An answer that fails leaves no trace.

        Raises: LorakeetError if the conversation does not fit the template or the model's context.
        """
        question = Message("user", text)
        opening = [Message("system", self.system)] if self.system is not None else []
        conversation = Conversation((*opening, *self.messages, question), place="chat")
        prompt = encode(conversation, self.chat_model.tokenizer, self.chat_model.template, add_generation_prompt=True).input_ids
        stream = TextStream(self.chat_model.tokenizer)
        pieces: list[str] = []

        def tell(piece: str) -> None:
            pieces.append(piece)
            if piece and on_text is not None:
                on_text(piece)

        start = time.perf_counter()
        # One answer does not pay for a compilation, which would keep the first token waiting for seconds.
        with torch.compiler.set_stance("force_eager"):
            (generation,) = generate(
                self.chat_model.model,
                [prompt],
                stop_ids=self.stop_ids,
                max_new_tokens=self.max_new_tokens,
                sampling=self.sampling,
                on_token=lambda _, token: tell(stream.push(token)),
            )
        tell(stream.finish())
        seconds = time.perf_counter() - start
        answer = "".join(pieces)
        self.messages += [question, Message("assistant", answer)]
        return Reply(answer, len(prompt), len(generation.ids), generation.stop_reason, seconds)


def run_chat(
    session: ChatSession, read: Callable[[], str | None], write: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Read questions and commands until there are no more, and answer them.

    Args:
        read: gives the next line, or None at the end of the input.
        write: takes the text of answers.
        note: takes everything else there is to say: help, errors.
    """
    while (line := read()) is not None:
        text = line.strip()
        if text in ("/exit", "/quit"):
            return
        if text.startswith("/"):
            _obey(session, text, note)
        elif text:
            _answer(session, text, write, note)


def _obey(session: ChatSession, text: str, note: Callable[[str], None]) -> None:
    command, _, argument = text.partition(" ")
    if command == "/reset":
        session.reset(session.system)
        note("Forgotten.")
    elif command == "/system":
        session.reset(argument.strip() or None)
        note("Begun again with this system prompt." if session.system else "Begun again without a system prompt.")
    else:
        note(HELP if command == "/help" else f"No command {command}.\n{HELP}")


def _answer(session: ChatSession, text: str, write: Callable[[str], None], note: Callable[[str], None]) -> None:
    try:
        reply = session.ask(text, on_text=write)
    except KeyboardInterrupt:
        write("\n")
        note("Interrupted; this question and its answer are forgotten.")
    except LorakeetError as error:
        note(f"{error} /reset begins again.")
    else:
        write("\n")
        if reply.stop_reason == "length":
            note("Cut off: the limit of new tokens or the model's context is reached.")
