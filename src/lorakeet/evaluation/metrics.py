"""Scores of one answer against its reference.

data in: reference text, generated text → out: a number from 0 to 1. Nothing here knows a model.
"""

from collections.abc import Callable, Sequence

from lorakeet.errors import ConfigError, MissingExtraError

Metric = Callable[[str, str], float]
"""metric(reference, generated)."""

ROUGE = ("rouge1", "rouge2", "rougeL")
NAMES = ("loss", "exact_match", "rouge")
"""What can be asked for; "loss" is no score of an answer and brings the perplexity along."""


def exact_match(reference: str, generated: str) -> float:
    """Return 1 if the two are the same text, whitespace at both ends aside."""
    return float(reference.strip() == generated.strip())


def text_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Return the metrics that score answers, by the names they are reported under.

    Raises: ConfigError for an unknown name, MissingExtraError if rouge-score is not installed.
    """
    metrics: dict[str, Metric] = {}
    for name in names:
        if name not in NAMES:
            raise ConfigError("E-CFG-130", f'unknown metric "{name}"', place="--metrics", fix=f"Known: {', '.join(NAMES)}")
        if name == "exact_match":
            metrics[name] = exact_match
        elif name == "rouge":
            metrics |= {kind: _rouge(kind) for kind in ROUGE}
    return metrics


def _rouge(kind: str) -> Metric:
    """Build one of Google's ROUGE F-measures, without stemming. Source: Lin 2004, aclanthology.org/W04-1013."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtraError.of("rouge-score", "eval", "ROUGE") from None
    scorer = RougeScorer([kind])

    def metric(reference: str, generated: str) -> float:
        return float(scorer.score(reference, generated)[kind].fmeasure)

    return metric
