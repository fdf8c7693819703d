"""The shape that every export has: what is exported, how it is written, and how its consumer reads it back.

data in: a run's base, adapter, template and rows → out: nothing; these are the nouns. A format is one file of this
folder with a `FORMAT`, which pairs a writer with a reader through the consumer's own loader; formats.py lists them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from lorakeet.chat_model import ChatModel
from lorakeet.data.conversation import Conversation
from lorakeet.data.templates.template import Template
from lorakeet.data.tokenizer import Tokenizer
from lorakeet.lora.adapter import load_adapter
from lorakeet.models import weights
from lorakeet.models.config import DecoderConfig
from lorakeet.models.config_file import load_config
from lorakeet.models.decoder import CausalLM


@dataclass(frozen=True)
class Source:
    """A trained model: what is exported, and what the artefact is compared with."""

    base: Path
    """Directory of the base model, in 16 or 32 bits."""
    adapter: Path
    tokenizer: Tokenizer
    template: Template
    """The one that the run was trained with."""
    system: str | None = None
    """The system prompt that all its training rows shared."""
    base_name: str = ""
    """The base model's public name: a hub id, or the name of its directory."""
    name: str = ""
    """What the tuned model is called."""
    rows: Callable[[], Sequence[Conversation]] = field(default=tuple)
    """The run's own held-out conversations; it raises LorakeetError if they cannot be had any more."""
    trained: Callable[[], ChatModel] | None = None
    """Load the model as it was trained, if that was over a quantised base; `base` is then another one."""

    @cached_property
    def base_hash(self) -> str:
        """Fingerprint of the base model's weights."""
        return weights.fingerprint(self.base)

    @cached_property
    def config(self) -> DecoderConfig:
        """The shape of the model."""
        return load_config(self.base)

    @cached_property
    def num_weights(self) -> int:
        """How many numbers the base model is on disk."""
        return sum(torch.Size(entry.shape).numel() for entry in weights.open_checkpoint(self.base).entries().values())

    @cached_property
    def num_bytes(self) -> int:
        """How many bytes the base model is on disk."""
        return sum(entry.num_bytes for entry in weights.open_checkpoint(self.base).entries().values())

    def outline(self) -> CausalLM:
        """Return the base with the adapter in it and its own weights still on disk, for `weights.each_parameter`.

        Raises: AdapterError E-ADPT-64 if the adapter belongs to another base.
        """
        model = weights.outline(self.base)
        load_adapter(model, self.adapter, base_hash=self.base_hash)
        return model

    def load(self, dtype: torch.dtype | None = None) -> CausalLM:
        """Load the base with the adapter in it; without `dtype` in that of the base's weights.

        Raises: AdapterError E-ADPT-64 if the adapter belongs to another base.
        """
        model = weights.load_model(self.base, dtype=dtype)
        load_adapter(model, self.adapter, base_hash=self.base_hash)
        return model.eval()


@dataclass(frozen=True)
class Options:
    """What the user may choose; a format refuses what it does not have."""

    dtype: str | None = None
    """How weights are stored; None for the format's own default."""
    adapter: bool = False
    """Keep the adapter apart from the base, where the format leaves the choice."""


@dataclass(frozen=True)
class Limits:
    """How far an artefact's answers may be from the live model's. Prompt ids must always be equal."""

    mean_kl: float
    """Nats a token."""
    top1: float
    """Least share of positions with the same most probable token, or one that is as probable but for rounding."""
    strength: float = 0.1
    """How far the strength of the adapter's effect may be from 1, beside what rounding makes of it by chance."""


EXACT = Limits(mean_kl=1e-5, top1=0.95)
"""Sums in float32 in another order."""
HALF = Limits(mean_kl=5e-3, top1=0.97)
"""Weights rounded once to float16, which keeps 11 bits."""
BRAIN = Limits(mean_kl=2e-2, top1=0.95, strength=0.3)
"""Weights rounded once to bfloat16, which keeps 8: 0.006 nats a token on a model of 135 M, less on larger ones. Updates of an
adapter that was hardly trained are smaller than what is rounded away, so that a part of them is lost."""


def rounding(dtype: torch.dtype) -> Limits:
    """Return how far weights that are rounded once to `dtype` may take a model's answers."""
    return {torch.float32: EXACT, torch.float16: HALF}.get(dtype, BRAIN)


@dataclass(frozen=True)
class Answer:
    """What a consumer says behind a prompt, greedily, and how sure it is of it. N tokens, K most probable ones."""

    ids: list[int]
    """N tokens; the one that ended the answer, if one did, is the last."""
    top_ids_NK: torch.Tensor
    """The most probable tokens at each position; -1 pads a position with fewer."""
    top_logprobs_NK: torch.Tensor


class Reader(Protocol):
    """An artefact as its consumer loads it."""

    @property
    def consumer(self) -> str:
        """Name and version of the program that has loaded it."""

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Return the ids that the consumer makes of a conversation, up to where the answer begins."""

    def ends_at(self, token_id: int) -> bool:
        """Tell whether an answer of the consumer ends with this token."""

    def answer(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Answer]:
        """Answer every prompt greedily with up to `num_tokens` tokens."""

    def close(self) -> None:
        """Free what the consumer holds."""


@dataclass(frozen=True)
class Missing:
    """A consumer that is not installed, so that nothing could be proven with it."""

    consumer: str
    install: str
    """What to install, as a command."""


@dataclass(frozen=True)
class Written:
    """What a writer has to say about what it has written."""

    dtype: str
    commands: tuple[str, ...] = ()
    """How the artefact is used, a shell line each; {path} stands for where it lies."""
    notes: tuple[str, ...] = ()
    """What the user must know, a sentence each."""
    limits: Limits = EXACT


@dataclass(frozen=True)
class Format:
    """One kind of artefact: a writer and a reader."""

    name: str
    about: str
    """What it is for, in a few words."""
    dtypes: tuple[str, ...]
    """What `Options.dtype` may be."""
    write: Callable[[Source, Path, Options], Written]
    """Write the files into an empty directory; refuse what the format cannot hold before anything is written."""
    read: Callable[[Source, Path], Reader | Missing]
    """Load what lies in that directory with the consumer's own loader."""
    suffix: str = ""
    """The ending of a path that means one file instead of a directory."""
