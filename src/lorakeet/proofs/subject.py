"""What is proven: a model with adapters in it, a few rows of its data, and what several proofs need of both.

data in: a model or a run, data → out: a Subject. Rows are short, so that a pass takes a second. A model of more than
MOST_WEIGHTS is proven on its first layers, the others are let go: every layer runs the same code, so that a difference
shows in two of them as well, and no second copy of the whole model is ever in memory.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from lorakeet import progress
from lorakeet.chat_model import ChatModel
from lorakeet.config import RunConfig
from lorakeet.data.conversation import Conversation, Example
from lorakeet.data.pack import PackedBatch, pack
from lorakeet.data.prepare import PreparedData, prepare_data, read_rows
from lorakeet.models.decoder import CausalLM
from lorakeet.proofs.generated import Said, answer_rounding, said, uncached
from lorakeet.proofs.passes import (
    Pass,
    allowed,
    answer_logits,
    draw_adapter,
    largest_difference,
    loss_and_grads,
    rounding_of,
    shaken,
)
from lorakeet.quant.layers import QuantizedLinear, num_weights

MOST_WEIGHTS = 200_000_000
FEW_LAYERS = 2
"""Layers of a large model that are proven, and of any model if it is to be quick."""
NUM_ROWS = 4
MOST_TOKENS = 192
"""Tokens of a row; longer ones are cut, so that a pass stays short."""
PROMPT_TOKENS, NUM_PROMPTS, ANSWER_TOKENS = 96, 3, 8
_LOOKED_AT = 1000  # rows among which the few are chosen


@dataclass(frozen=True)
class Subject:
    """A model with adapters in evaluation mode, and what it is compared on."""

    chat_model: ChatModel
    config: RunConfig
    rows: Sequence[Conversation]
    """All rows to be trained on."""
    data: PreparedData
    """The same as training has them: encoded, or found in the cache."""
    examples: Sequence[Example]
    """A few rows of different lengths, cut short."""
    base_logits: torch.Tensor
    """Of the rows' answers, before there were adapters."""
    num_layers: int
    """Of the model as it is on disk; `model` may have fewer."""
    scratch: Path
    """An empty folder that goes away at the end."""

    @property
    def model(self) -> CausalLM:
        """The decoder."""
        return self.chat_model.model

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in."""
        return self.model.lm_head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.lm_head.weight.device

    @property
    def is_whole(self) -> bool:
        """Whether all layers of the model are there."""
        return len(self.model.model.layers) == self.num_layers

    @property
    def is_quantized(self) -> bool:
        """Whether some layers hold 4 or 8 bits."""
        return any(isinstance(part, QuantizedLinear) for part in self.model.modules())

    @property
    def num_supervised(self) -> int:
        """Supervised tokens of the examples."""
        return sum(example.num_supervised_tokens for example in self.examples)

    @cached_property
    def prompts(self) -> list[list[int]]:
        """What stands before the answers of some examples, cut at the left, each of another length."""
        found = [example.input_ids[: example.spans[0][0]][-PROMPT_TOKENS:] for example in self.examples]
        return [ids[i if len(ids) > i + 1 else 0 :] for i, ids in enumerate(found[:NUM_PROMPTS])]

    def batch(self, examples: Sequence[Example]) -> PackedBatch:
        """Pack examples as whole documents, on the model's device."""
        return replace(pack(examples, fill_up=self.device.type == "cpu").to(self.device), parents=None)

    @cached_property
    def alone(self) -> Pass:
        """Losses and gradients of the examples, each by itself: the plain truth of all that packs, cuts or recomputes."""
        return loss_and_grads(self.model, [self.batch([example]) for example in self.examples])

    @cached_property
    def allowed(self) -> dict[str, float]:
        """How far from `alone` a sound pass may be."""
        return rounding_of(self.model, [self.batch([example]) for example in self.examples], self.alone)

    @cached_property
    def logits(self) -> torch.Tensor:
        """Of the rows' answers, with the adapters."""
        return answer_logits(self.model, self.examples)

    @cached_property
    def allowed_logits(self) -> float:
        """How far from `logits` sound ones may be."""
        with shaken(self.model):
            moved = largest_difference(answer_logits(self.model, self.examples), self.logits)
        return allowed({"": moved}, self.dtype)[""]

    @cached_property
    def answers(self) -> list[Said]:
        """What the generator says behind each prompt, one prompt after the other."""
        return [said(self.model, [prompt], ANSWER_TOKENS)[0] for prompt in self.prompts]

    @cached_property
    def uncached(self) -> list[torch.Tensor]:
        """Log-probabilities along those answers by plain passes."""
        return uncached(self.model, self.prompts, self.answers)

    @cached_property
    def allowed_logprobs(self) -> float:
        """How far from `uncached` sound log-probabilities of likely tokens may be, in nats."""
        return answer_rounding(self.model, self.prompts, self.answers, self.uncached)

    @property
    def about(self) -> dict[str, str | int]:
        """What this is, for the head of a table."""
        layers, whole = len(self.model.model.layers), self.num_layers
        return {
            "model": self.config.model,
            "data": ", ".join(self.config.data.train),
            "rows": len(self.rows),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "layers": f"all {whole}" if layers == whole else f"the first {layers} of {whole}",
        }


@contextmanager
def opened(chat_model: ChatModel, config: RunConfig, adapter: Path | None, *, quick: bool = False) -> Iterator[Subject]:
    """Make a freshly loaded model the subject of proofs; without an `adapter` it gets one that is drawn by chance.

    If it is to be `quick`, the first layers are all that is proven.

    Raises: DataError if a row cannot be trained on; AdapterError if the adapter does not belong to the model.
    """
    model = chat_model.model
    rows = read_rows(config)[0]
    data = prepare_data(config, chat_model.tokenizer, chat_model.template, chat_model.context, progress.encoding)
    examples = choose_examples(data.train.examples)
    layers = model.model.layers
    num_layers = len(layers)
    few = layers[:FEW_LAYERS] if quick or num_weights(model) > MOST_WEIGHTS else layers
    model.model.layers = few
    base_logits = answer_logits(model, examples)
    if adapter is None:
        draw_adapter(model, config.peft_config)
    else:  # onto the whole model, so that every key finds its layer
        model.model.layers = layers
        chat_model.with_adapter(adapter)
        model.model.layers = few
    model.config = replace(model.config, num_hidden_layers=len(few))
    del layers, few  # those that are not proven take no memory any more
    with tempfile.TemporaryDirectory(prefix="lorakeet-verify-") as folder:
        yield Subject(chat_model, config, rows, data, examples, base_logits, num_layers, Path(folder))


def choose_examples(examples: Sequence[Example]) -> list[Example]:
    """Choose a few rows of different lengths and cut them; where there are too few, other tokens make new ones of them."""
    looked_at = sorted(map(cut, examples[:_LOOKED_AT]), key=lambda example: len(example.input_ids))
    chosen = [looked_at[i * (len(looked_at) - 1) // (NUM_ROWS - 1)] for i in range(NUM_ROWS)]
    return [example if example not in chosen[:i] else _turned(example, i) for i, example in enumerate(chosen)]


def cut(example: Example, most: int = MOST_TOKENS) -> Example:
    """Return the first tokens of a row or, if nothing of them is trained on, the last ones before its first answer ends."""
    ids, spans = example.input_ids, example.spans
    first = max(0, spans[0][1] - most) if spans[0][0] >= most - 1 else 0
    end = min(first + most, len(ids))
    inside = [(max(start, first + 1) - first, min(stop, end) - first) for start, stop in spans]
    return replace(example, input_ids=ids[first:end], spans=tuple(span for span in inside if span[0] < span[1]))


def _turned(example: Example, by: int) -> Example:
    """Return a row of the same tokens in another order, a little shorter: as good as another row for what is proven."""
    ids = example.input_ids[by:] + example.input_ids[:by]
    length = max(3, len(ids) - by)
    spans = tuple((start, min(stop, length)) for start, stop in example.spans if start < length - 1)
    return Example(ids[:length], spans or ((1, min(length, len(ids))),), example.place)
