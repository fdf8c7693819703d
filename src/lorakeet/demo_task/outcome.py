"""What the demo's model answers before and after training, and how many of the answers are right.

data in: a ChatModel → out: answers to the held-out requests with their scores, and pairs of them worth showing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lorakeet import progress
from lorakeet.chat_model import ChatModel
from lorakeet.data.prepare import demo_rows
from lorakeet.demo_task.recipe import MAX_NEW_TOKENS
from lorakeet.demo_task.scoring import score
from lorakeet.evaluation.generation import Answer, generate_answers, mean_scores
from lorakeet.rundir.record import RunRecord

if TYPE_CHECKING:
    from lorakeet.proofs.verify import Verification

DEMO_METRIC = "exact_json"
"""Name of the demo's score."""


@dataclass(frozen=True)
class DemoAnswers:
    """One model's answers to the held-out requests."""

    answers: Sequence[Answer]

    @property
    def score(self) -> float:
        """Share of the requests that became the right call."""
        return mean_scores(self.answers)[DEMO_METRIC]


@dataclass(frozen=True)
class DemoOutcome:
    """The demo's run, the answers before and after it, and what was proven of it."""

    run: RunRecord
    before: DemoAnswers
    after: DemoAnswers
    proofs: "Verification"
    """The quick proofs of the run."""

    def to_dict(self) -> dict[str, Any]:
        """Return what `lorakeet demo --json` prints."""
        summary = self.run.summary
        kept = {key: summary[key] for key in ("train_seconds", "tokens_per_second", "peak_memory_bytes", "run_dir")}
        return {"score_before": self.before.score, "score_after": self.after.score, "proofs": self.proofs.to_dict(), **kept}

    def telling_pairs(self, count: int) -> list[tuple[Answer, Answer]]:
        """Pick answers before and after to show: in the order of what changed, at equal distances, misses included."""
        pairs = sorted(
            zip(self.before.answers, self.after.answers, strict=True),
            key=lambda pair: pair[0].scores[DEMO_METRIC] - pair[1].scores[DEMO_METRIC],
        )
        count = min(count, len(pairs))
        return [pairs[i * (len(pairs) - 1) // max(1, count - 1)] for i in range(count)]


def verdict(before: Answer, after: Answer) -> str:
    """Say whether the answer after training is right, and whether the one before was."""
    was_right, is_right = before.scores[DEMO_METRIC] == 1, after.scores[DEMO_METRIC] == 1
    if is_right:
        return "right, as before" if was_right else "right now"
    return "wrong now" if was_right else "still wrong"


def score_demo(chat_model: ChatModel) -> DemoAnswers:
    """Let a model answer the held-out requests, and score the answers."""
    metrics = {DEMO_METRIC: lambda reference, text: float(score(reference, text))}
    rows, counted = demo_rows("held_out"), partial(progress.report, "answering held-out requests")
    return DemoAnswers(generate_answers(chat_model, rows, max_new_tokens=MAX_NEW_TOKENS, metrics=metrics, on_progress=counted))
