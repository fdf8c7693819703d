"""A conversation with a model, turn by turn.

data in: questions → out: answers, streamed. The prompt of every turn is the whole conversation so far, encoded by
the one encode function of training; what of it was read before is not read again. Who answers, the base model or one of
several adapters over it, may change between any two turns.
"""

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch

from lorakeet import notebook
from lorakeet.chat_model import ChatModel
from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import encode
from lorakeet.infer.engine import Engine, Request, StopReason, Stream
from lorakeet.infer.load import NamedAdapter
from lorakeet.infer.mode import evaluating
from lorakeet.infer.sampling import GREEDY, Sampling
from lorakeet.infer.text_stream import TextStream
from lorakeet.lora.disable import disabled_adapters
from lorakeet.lora.inject import lora_layers

IN_MODEL = "adapter"
"""Name of an adapter that lies in the model itself."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer and how it came about."""

    text: str
    num_prompt_tokens: int
    num_answer_tokens: int
    stop_reason: StopReason | Literal["interrupted"]
    seconds: float
    num_cached_tokens: int = 0
    """Tokens of the prompt that were known from an earlier turn."""

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
    adapters: Mapping[str, NamedAdapter] = field(default_factory=dict)
    """Adapters that may answer, kept apart from the model. The first one does, until `use` names another."""
    prefix_bytes: int = 0
    """Memory for what was read before. Only for models whose weights stay as they are: it is not noticed if they change."""

    def __post_init__(self) -> None:
        self._engine: Engine | None = None
        self._chosen: str | None = None
        self._is_base = False

    @property
    def names(self) -> list[str]:
        """The adapters that may answer."""
        return [*self.adapters] or [IN_MODEL] * any(True for _ in lora_layers(self.chat_model.model))

    @property
    def adapter(self) -> str | None:
        """The adapter that answers; None for the base model alone."""
        return None if self._is_base else self._chosen or next(iter(self.names), None)

    @property
    def stop_ids(self) -> Collection[int]:
        """The ids that end an answer."""
        return self.chat_model.tokenizer.stop_ids

    def use(self, name: str | None) -> None:
        """Let the adapter of this name answer from now on; None for the base model alone."""
        if name != self.adapter and not self.adapters:
            self._engine = None  # it knows beginnings by their adapter, and this one is a part of the model
        self._chosen, self._is_base = name, name is None

    def reset(self, system: str | None = None) -> None:
        """Forget what has been said, and open the conversation with `system`."""
        self.system = system
        self.messages.clear()

    def ask(
        self, text: str, on_text: Callable[[str], None] | None = None, is_stopped: Callable[[], bool] = lambda: False
    ) -> Reply:
        """Answer `text`; `on_text` gets the answer in pieces as it comes. An answer that fails leaves no trace.

        Args:
            is_stopped: asked between two tokens; once it is true the answer is what has been said so far.
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
        answer = self._generate(prompt, lambda id: show(stream.push(id)), is_stopped)
        show(stream.finish())
        seconds = time.perf_counter() - start
        said = "".join(pieces)
        if said or not answer.is_cancelled:
            self.messages += [question, Message("assistant", said)]
        reason = answer.stop_reason or "interrupted"
        return Reply(said, len(prompt), len(answer.ids) - len(prompt), reason, seconds, answer.num_cached_tokens)

    def _generate(self, prompt: list[int], on_id: Callable[[int], None], is_stopped: Callable[[], bool]) -> Stream:
        """Let the engine answer; one that is broken off in a pass is thrown away."""
        named = self.adapters[self.adapter] if self.adapters and self.adapter is not None else None
        request = Request(
            prompt=prompt,
            stop_ids=self.stop_ids,
            max_new_tokens=self.max_new_tokens,
            sampling=self.sampling,
            adapter=None if named is None else named.adapter,
            on_token=lambda token: on_id(token.id),
        )
        model = self.chat_model.model
        engine, self._engine = self._engine or Engine(model, prefix_bytes=self.prefix_bytes), None
        is_base = self.adapter is None and not self.adapters
        # One answer does not pay for a compilation, which would keep the first token waiting for seconds.
        with (
            disabled_adapters(model) if is_base else nullcontext(),
            evaluating(model),
            torch.compiler.set_stance("force_eager"),
        ):
            answer = engine.submit(request)
            while not answer.is_ended:
                engine.cancel(answer) if is_stopped() else engine.advance()
        if answer.error is not None:
            raise answer.error
        self._engine = engine if self.prefix_bytes else None
        return answer
