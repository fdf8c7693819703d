"""One model measured on held-out conversations, with and without its adapter.

data in: a model with an adapter, conversations → out: two columns of the same numbers, and the answers behind them.
The base model is the tuned one with its adapter switched off, so that nothing but the adapter differs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lorakeet import notebook
from lorakeet.chat_model import ChatModel
from lorakeet.data.conversation import Conversation
from lorakeet.data.encode import Learn, encode_many
from lorakeet.errors import DataError
from lorakeet.evaluation.generation import Answer, generate_answers, mean_scores
from lorakeet.evaluation.metrics import Metric
from lorakeet.evaluation.perplexity import EvalLoss, evaluate_loss
from lorakeet.lora.disable import disabled_adapters

Progress = Callable[[str, int, int], None]
"""progress(what is being done, how much is done, how much there is)."""


@dataclass(frozen=True)
class Measurement:
    """One model's column."""

    loss: EvalLoss | None
    scores: dict[str, float]
    """Means over all answers, from 0 to 1."""
    answers: list[Answer] = field(default_factory=list)

    @property
    def numbers(self) -> dict[str, float]:
        """Loss, perplexity and scores by name."""
        losses = {"loss": self.loss.loss, "perplexity": self.loss.perplexity} if self.loss is not None else {}
        return losses | self.scores


@dataclass(frozen=True)
class Comparison:
    """Both columns; `base` is None if it was not asked for."""

    tuned: Measurement
    base: Measurement | None
    num_conversations: int

    def _repr_html_(self) -> str:
        columns = {"base": self.base, "tuned": self.tuned}
        shown = {name: column.numbers for name, column in columns.items() if column is not None}
        rows = ([name, *(numbers[name] for numbers in shown.values())] for name in self.tuned.numbers)
        return notebook.table([f"{self.num_conversations} conversations", *shown], rows)


@dataclass(frozen=True)
class Evaluation:
    """What to measure, on which conversations."""

    conversations: Sequence[Conversation]
    metrics: Mapping[str, Metric]
    with_loss: bool = True
    learn: Learn = "all"
    max_new_tokens: int = 256
    batch_size: int = 8
    on_progress: Progress | None = None

    def __post_init__(self) -> None:
        if not self.conversations:
            raise DataError("E-DATA-28", "0 conversations to evaluate", fix="Name held-out data")

    def measure(self, chat_model: ChatModel, name: str = "model") -> Measurement:
        """Measure one model; `name` stands in the progress."""
        loss = None
        if self.with_loss:
            examples = encode_many(self.conversations, chat_model.tokenizer, chat_model.template, learn=self.learn)
            self._check_lengths(chat_model.context, [len(example.input_ids) for example in examples])
            loss = evaluate_loss(
                chat_model.model, examples, batch_size=self.batch_size, on_progress=self._progress_of(f"loss, {name}")
            )
        if not self.metrics:
            return Measurement(loss, {})
        answers = generate_answers(
            chat_model,
            self.conversations,
            max_new_tokens=self.max_new_tokens,
            metrics=self.metrics,
            on_progress=self._progress_of(f"answers, {name}"),
        )
        return Measurement(loss, mean_scores(answers), answers)

    def compare(self, chat_model: ChatModel, *, with_base: bool = True) -> Comparison:
        """Measure a model with its adapter, and without it if `with_base`."""
        base = None
        if with_base:
            with disabled_adapters(chat_model.model):
                base = self.measure(chat_model, "base")
        return Comparison(self.measure(chat_model, "tuned"), base, len(self.conversations))

    def _check_lengths(self, context: int, lengths: Sequence[int]) -> None:
        for conversation, length in zip(self.conversations, lengths, strict=True):
            if length > context:
                raise DataError(
                    "E-DATA-27",
                    f"the row has {length} tokens; the model's context holds {context}",
                    place=conversation.place,
                    fix="Shorten or remove the row",
                )

    def _progress_of(self, what: str) -> Callable[[int, int], None] | None:
        if self.on_progress is None:
            return None
        report = self.on_progress
        return lambda done, total: report(what, done, total)
