"""Scores of answers against their references.

data in: reference text, generated text → out: a number from 0 to 1, for one answer or for all of them together. Nothing here
knows a model. BLEU and chrF are sums over a whole set of answers, so they have no score for a single one.
"""

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from lorakeet.errors import ConfigError, MissingExtraError

Metric = Callable[[str, str], float]
"""metric(reference, generated)."""
CorpusMetric = Callable[[Sequence[str], Sequence[str]], float]
"""metric(references, generated)."""

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
NAMES = ("loss", "exact_match", "rouge", "bleu", "chrf", "json_match", "number_match")
"""What can be asked for; "loss" is no score of an answer and brings the perplexity along."""
DEFAULT = ("loss", "exact_match", "rouge")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact_match(reference: str, generated: str) -> float:
    """Return 1 if the two are the same text, whitespace at both ends aside."""
    return float(reference.strip() == generated.strip())


def json_match(reference: str, generated: str) -> float:
    """Return 1 if both are JSON of the same value: spaces and the order of keys do not count, types do."""
    try:
        return float(_typed(json.loads(reference)) == _typed(json.loads(generated)))
    except ValueError:
        return 0.0


def _typed(value: Any) -> Any:
    """Put each value's type beside it, since Python's 1, 1.0 and True are equal."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    return [_typed(item) for item in value] if isinstance(value, list) else (type(value), value)


def number_match(reference: str, generated: str) -> float:
    """Return 1 if the last number of the answer is the last one of the reference; thousands separators do not count."""
    expected, found = _last_number(reference), _last_number(generated)
    return float(expected is not None and expected == found)


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


_SIMPLE: dict[str, Metric] = {"exact_match": exact_match, "json_match": json_match, "number_match": number_match}


def text_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Return the metrics that score single answers, by the names they are reported under.

    Raises: ConfigError for an unknown name, MissingExtraError if rouge-score is not installed.
    """
    metrics: dict[str, Metric] = {}
    for name in names:
        if name not in NAMES:
            raise ConfigError("E-CFG-130", f'unknown metric "{name}"', place="--metrics", fix=f"Known: {', '.join(NAMES)}")
        if name in _SIMPLE:
            metrics[name] = _SIMPLE[name]
        elif name == "rouge":
            metrics |= {kind: _rouge(kind) for kind in ROUGE}
    return metrics


def corpus_metrics(names: Sequence[str]) -> dict[str, CorpusMetric]:
    """Return the metrics that score all answers together: sacrebleu's BLEU and chrF.

    Raises: MissingExtraError if sacrebleu is not installed.
    """
    wanted = [name for name in names if name in ("bleu", "chrf")]
    if not wanted:
        return {}
    try:
        from sacrebleu import corpus_bleu, corpus_chrf
    except ImportError:
        raise MissingExtraError.of("sacrebleu", "eval", " and ".join(wanted)) from None
    scorers: dict[str, Any] = {"bleu": corpus_bleu, "chrf": corpus_chrf}

    def metric(name: str) -> CorpusMetric:
        return lambda references, generated: float(scorers[name](list(generated), [list(references)]).score) / 100

    return {name: metric(name) for name in wanted}


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
