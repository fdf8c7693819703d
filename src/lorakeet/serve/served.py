"""The model that is served, the names under which it answers, and how a request's words become the engine's.

data in: a base model, adapters under names, checked requests → out: token ids, sampling, adapters. Names point at
adapters; what is computed and kept goes by the adapters' content alone.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import encode
from lorakeet.data.templates.template import Template
from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import ServerError
from lorakeet.infer.load import NamedAdapter, OneBase
from lorakeet.infer.sampling import Sampling
from lorakeet.models.decoder import CausalLM
from lorakeet.serve.schemas import ChatMessage, ChatRequest, Completing, CompletionRequest, Drawing, Tool


@dataclass
class Served:
    """A base model with its tokenizer and template, and the adapters by name."""

    name: str
    model: CausalLM
    tokenizer: Tokenizer
    template: Template
    root: str = ""
    base_hash: str | None = None
    adapters: dict[str, NamedAdapter] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, base: OneBase) -> "Served":
        """Serve what was loaded."""
        loaded, root = base.chat_model, str(base.chat_model.directory)
        return cls(base.name, loaded.model, loaded.tokenizer, loaded.template, root, base.base_hash, base.adapters)

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return self.model.config.max_position_embeddings

    def adapter(self, name: str) -> NamedAdapter | None:
        """Return the adapter of a name, None for the base model. Raises: ServerError E-SRV-270 for any other name."""
        if name in self.adapters or name == self.name:
            return self.adapters.get(name)
        raise ServerError("E-SRV-270", f"the model {name[:80]!r} does not exist", fix="GET /v1/models lists the names")

    def cards(self) -> list[dict[str, Any]]:
        """Describe everything that answers, as /v1/models does."""
        common = {"object": "model", "owned_by": "lorakeet", "max_model_len": self.context}
        cards = [{"id": self.name, **common, "created": self.created, "root": self.root or self.name, "parent": None}]
        for name, served in list(self.adapters.items()):
            cards.append({"id": name, **common, "created": served.created, "root": served.root, "parent": self.name})
        return cards

    def conversation(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] | None, system: str | None) -> Conversation:
        """Turn a request's messages into a conversation, opened by `system` if they bring no such prompt."""
        turns = tuple(_message(at, message) for at, message in enumerate(messages))
        if system is not None and turns[0].role != "system":
            turns = (Message("system", system), *turns)
        described = tuple(tool.model_dump(exclude_none=True) for tool in tools or ())
        return Conversation(turns, place="messages", tools=described)

    def prompt(self, conversation: Conversation, *, add_generation_prompt: bool = True) -> list[int]:
        """Encode a conversation by the one encode function."""
        learn: Any = {} if add_generation_prompt else {"learn": "text"}
        return encode(
            conversation, self.tokenizer, self.template, add_generation_prompt=add_generation_prompt, **learn
        ).input_ids

    def text_prompt(self, prompt: str | Sequence[int] | Sequence[str]) -> list[int]:
        """Encode a plain text as the tokenizer itself would; ids stay as they are. Raises: E-SRV-271 for unknown ids."""
        if isinstance(prompt, str) or isinstance(prompt[0], str):
            text = prompt if isinstance(prompt, str) else str(prompt[0])
            return self.prompt(Conversation((), place="prompt", text=text))
        ids = [int(token) for token in prompt]
        if not all(0 <= token < self.model.config.vocab_size for token in ids):
            raise ServerError("E-SRV-271", f"token ids must lie from 0 to {self.model.config.vocab_size - 1}", place="prompt")
        return ids

    def answer_length(self, num_prompt_tokens: int, wanted: int | None, limit: int) -> int:
        """Return how long the answer may become. Raises: E-SRV-272 or 273 for more than there is room for."""
        room = self.context - num_prompt_tokens
        if room < 1 or (wanted is not None and wanted > room):
            total = f"{num_prompt_tokens} tokens of prompt and {wanted or 1} of answer"
            raise ServerError("E-SRV-272", f"the context holds {self.context} tokens; asked for {total}", place="max_tokens")
        if wanted is not None and wanted > limit:
            raise ServerError("E-SRV-273", f"answers have at most {limit} tokens here", place="max_tokens")
        return min(room, limit) if wanted is None else wanted


def sampling_of(request: Drawing) -> Sampling:
    """Return how tokens are drawn; OpenAI's temperature is 1 unless a request says otherwise."""
    temperature = 1.0 if request.temperature is None else request.temperature
    top_p = 1.0 if request.top_p is None else request.top_p
    if not isinstance(request, Completing):
        return Sampling(temperature, top_p)
    top_k, penalty = max(0, request.top_k or 0), request.repetition_penalty or 1.0
    return Sampling(temperature, top_p, top_k, request.seed, request.min_p or 0.0, penalty)


def num_logprobs(request: Drawing) -> int | None:
    """Return how many likely tokens to report with each one; None for none and no logprobs."""
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs if isinstance(request, CompletionRequest) else None


def _message(at: int, message: ChatMessage) -> Message:
    role = "system" if message.role == "developer" else message.role
    content = message.content
    text = "".join(part.text for part in content) if isinstance(content, list) else content or ""
    if message.content is None and not message.tool_calls:
        raise ServerError("E-SRV-274", "the message has neither content nor tool_calls", place=f"messages[{at}]")
    calls = tuple(
        {"name": call.function.name, "arguments": _arguments(at, call.function.arguments)} for call in message.tool_calls or ()
    )
    return Message(role, text, tool_calls=calls, name=message.name)


def _arguments(at: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ServerError("E-SRV-275", "the arguments of a tool call are no JSON", place=f"messages[{at}]") from None


def inside(path: str, folders: Sequence[Path]) -> Path:
    """Return `path` if it lies in one of `folders`, links followed. Raises: ServerError E-SRV-277."""
    candidates = [Path(path)] if Path(path).is_absolute() else [folder / path for folder in folders]
    for candidate in candidates:
        with suppress(OSError, ValueError):  # a name that no file can have
            resolved = candidate.resolve()
            if resolved.is_dir() and any(resolved.is_relative_to(folder.resolve()) for folder in folders):
                return resolved
    raise ServerError(
        "E-SRV-277", "adapters are loaded only from folders named at the start", fix="Start the server with --adapters FOLDER"
    )
