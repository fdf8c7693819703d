"""A conversation with a model, turn by turn.

data in: questions → out: answers, streamed. The prompt of every turn is the whole conversation so far, encoded by
the one encode function of training.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

from lorakeet import notebook
from lorakeet.chat_model import ChatModel
from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import encode
from lorakeet.infer.engine import StopReason, generate
from lorakeet.infer.sampling import GREEDY, Sampling
from lorakeet.infer.text_stream import TextStream


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

    def _repr_html_(self) -> str:
        pace = f"\n{self.num_answer_tokens} tokens, {self.tokens_per_second:.1f} a second, ended by {self.stop_reason}"
        return notebook.text(self.text) + notebook.text(pace, style="opacity:.6;font-size:smaller")


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

        def show(piece: str) -> None:
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
                on_token=lambda _, token: show(stream.push(token)),
            )
        show(stream.finish())
        seconds = time.perf_counter() - start
        answer = "".join(pieces)
        self.messages += [question, Message("assistant", answer)]
        return Reply(answer, len(prompt), len(generation.ids), generation.stop_reason, seconds)
