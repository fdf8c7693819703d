"""Models measured on the same held-out conversations: one with and without its adapter, and others beside it.

data in: a model with an adapter, conversations → out: columns of the same numbers, the answers behind them, and how sure
the differences are. The base model is the tuned one with its adapter switched off, so that nothing but the adapter differs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lorakeet import notebook
from lorakeet.chat_model import ChatModel
from lorakeet.data.conversation import Conversation, Example
from lorakeet.data.encode import EncodeOptions, Learn
from lorakeet.data.encode_all import encode_rows
from lorakeet.data.split import Repeats
from lorakeet.errors import DataError
from lorakeet.evaluation.generation import Answer, generate_answers, mean_scores, without_reasoning
from lorakeet.evaluation.intervals import Difference, paired_difference
from lorakeet.evaluation.metrics import CorpusMetric, Metric
from lorakeet.evaluation.perplexity import EvalLoss, evaluate_loss
from lorakeet.lora.disable import disabled_adapters

Progress = Callable[[str, int, int], None]
"""progress(what is being done, how much is done, how much there is)."""


@dataclass(frozen=True)
class Measurement:
    """One model's column."""

    loss: EvalLoss | None
    scores: dict[str, float]
    """By name of the metric, from 0 to 1: means over all answers, or a score of all answers together."""
    answers: list[Answer] = field(default_factory=list)

    @property
    def numbers(self) -> dict[str, float]:
        """Loss, perplexity, scores, the share of answers that the model ended itself, and their mean length in tokens."""
        losses = {"loss": self.loss.loss, "perplexity": self.loss.perplexity} if self.loss is not None else {}
        return losses | self.scores | self._of_answers()

    def _of_answers(self) -> dict[str, float]:
        if not self.answers:
            return {}
        stopped = sum(answer.stop_reason == "stop" for answer in self.answers)
        tokens = sum(answer.num_tokens for answer in self.answers)
        return {"stop_rate": stopped / len(self.answers), "answer_tokens": tokens / len(self.answers)}


@dataclass(frozen=True)
class Comparison:
    """All columns; `base` is None if it was not asked for."""

    tuned: Measurement
    base: Measurement | None
    num_conversations: int
    others: dict[str, Measurement] = field(default_factory=dict)
    """Further runs on the same rows, by name."""
    trained_on: Repeats | None = None
    """Which of the conversations also stand in the run's training data; None if that was not looked for."""

    @property
    def columns(self) -> dict[str, Measurement]:
        """What was measured, by name: base, tuned, the others."""
        return ({"base": self.base} if self.base is not None else {}) | {"tuned": self.tuned} | self.others

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """By how much tuned is above base in every score of single answers; nothing of one row, which has no spread."""
        if self.base is None or len(self.tuned.answers) < 2:
            return {}
        pairs = list(zip(self.tuned.answers, self.base.answers, strict=True))
        return {
            name: paired_difference([ours.scores[name] for ours, _ in pairs], [theirs.scores[name] for _, theirs in pairs])
            for name in self.tuned.answers[0].scores
        }

    def _repr_html_(self) -> str:
        shown = {name: column.numbers for name, column in self.columns.items()}
        rows = ([name, *(numbers[name] for numbers in shown.values())] for name in self.tuned.numbers)
        return notebook.table([f"{self.num_conversations} conversations", *shown], rows)


@dataclass(frozen=True)
class Evaluation:
    """What to measure, on which conversations."""

    conversations: Sequence[Conversation]
    metrics: Mapping[str, Metric]
    corpus_metrics: Mapping[str, CorpusMetric] = field(default_factory=dict)
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
            options = EncodeOptions(self.learn)
            examples = encode_rows(self.conversations, chat_model.tokenizer, chat_model.template, options).examples
            self._check_lengths(chat_model.context, examples)
            loss = evaluate_loss(
                chat_model.model, examples, batch_size=self.batch_size, on_progress=self._progress_of(f"{name}: held-out loss")
            )
        if not self.metrics and not self.corpus_metrics:
            return Measurement(loss, {})
        answers = generate_answers(
            chat_model,
            self.conversations,
            max_new_tokens=self.max_new_tokens,
            metrics=self.metrics,
            on_progress=self._progress_of(f"{name}: answers"),
        )
        references = [without_reasoning(answer.reference) for answer in answers]
        texts = [without_reasoning(answer.text) for answer in answers]
        together = {name: metric(references, texts) for name, metric in self.corpus_metrics.items()}
        return Measurement(loss, mean_scores(answers) | together, answers)

    def compare(self, chat_model: ChatModel, *, with_base: bool = True) -> Comparison:
        """Measure a model with its adapter, and without it if `with_base`."""
        base = None
        if with_base:
            with disabled_adapters(chat_model.model):
                base = self.measure(chat_model, "base")
        return Comparison(self.measure(chat_model, "tuned"), base, len(self.conversations))

    @staticmethod
    def _check_lengths(context: int, examples: Sequence[Example]) -> None:
        for example in examples:
            if len(example.input_ids) > context:
                raise DataError(
                    "E-DATA-27",
                    f"the row has {len(example.input_ids)} tokens; the model's context holds {context}",
                    place=example.place,
                    fix="Shorten or remove the row",
                )

    def _progress_of(self, what: str) -> Callable[[int, int], None] | None:
        if self.on_progress is None:
            return None
        report = self.on_progress
        return lambda done, total: report(what, done, total)
