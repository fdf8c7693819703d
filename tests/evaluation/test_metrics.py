"""Scores of answers, held against Google's own scorer."""

import sys

import numpy
import pytest

from lorakeet.errors import ConfigError, MissingExtraError
from lorakeet.evaluation.intervals import paired_difference
from lorakeet.evaluation.metrics import corpus_metrics, exact_match, json_match, number_match, text_metrics

PAIRS = [("the lazy dog", "the lazy dog"), ("the lazy dog", "a lazy fox jumps"), ("the lazy dog", ""), ("", "a")]


def test_exact_match_ignores_whitespace_at_the_ends_only():
    assert exact_match("a b", " a b\n") == 1
    assert exact_match("a b", "a  b") == 0
    assert exact_match("a b", "A b") == 0


@pytest.mark.parametrize(("reference", "generated"), PAIRS)
def test_rouge_matches_rouge_score(reference, generated):
    from rouge_score.rouge_scorer import RougeScorer

    metrics = text_metrics(["rouge"])
    expected = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"]).score(reference, generated)
    assert {name: metric(reference, generated) for name, metric in metrics.items()} == {
        name: score.fmeasure for name, score in expected.items()
    }


@pytest.mark.parametrize(
    ("reference", "generated", "expected"),
    [
        ('{"a": 1, "b": [true]}', '{"b":[true],"a":1}', 1),
        ('{"a": 1}', '{"a": true}', 0),
        ('{"a": 1}', '{"a": 1.0}', 0),
        ("[1, 2]", "[2, 1]", 0),
        ('{"a": 1}', 'Sure: {"a": 1}', 0),
        ("plain", "plain", 0),
    ],
)
def test_json_match_compares_values(reference, generated, expected):
    assert json_match(reference, generated) == expected


@pytest.mark.parametrize(
    ("reference", "generated", "expected"),
    [
        ("2 + 2 = 4\n#### 4", "The answer is 4.", 1),
        ("#### 1,234", "It is 1234", 1),
        ("#### 0.5", "-0.5", 0),
        ("#### 7", "7 apples, or 8", 0),
        ("none", "none", 0),
    ],
)
def test_number_match_compares_the_last_numbers(reference, generated, expected):
    assert number_match(reference, generated) == expected


def test_bleu_and_chrf_are_those_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    references, generated = (list(texts) for texts in zip(*PAIRS, strict=True))
    found = {name: metric(references, generated) for name, metric in corpus_metrics(["loss", "bleu", "chrf"]).items()}
    assert found == {
        "bleu": pytest.approx(sacrebleu.corpus_bleu(generated, [references]).score / 100),
        "chrf": pytest.approx(sacrebleu.corpus_chrf(generated, [references]).score / 100),
    }
    assert 0 < found["bleu"] < found["chrf"] < 1


def test_an_interval_holds_zero_unless_the_difference_is_real():
    better = [1.0] * 30 + [0.0] * 10
    worse = [1.0] * 10 + [0.0] * 30
    found = paired_difference(better, worse)
    assert (found.mean, found.is_real) == (0.5, True)
    assert 0.3 < found.low < 0.5 < found.high < 0.7
    assert paired_difference(better, worse) == found
    same = paired_difference([1.0, 0.0] * 5, [0.0, 1.0] * 5)
    assert (same.mean, same.is_real) == (0.0, False)


def test_an_interval_covers_the_true_difference_as_often_as_it_says():
    """Of 200 samples with a true difference of 0.1, about 95 % of the intervals hold it."""
    rng = numpy.random.default_rng(1)
    held = 0
    for _ in range(200):
        base = (rng.random(100) < 0.5).astype(float)
        tuned = numpy.where(rng.random(100) < 0.2, 1.0, base)  # half of those it turns were right already
        found = paired_difference(list(tuned), list(base))
        held += found.low <= 0.1 <= found.high
    assert 180 <= held <= 198


def test_loss_is_no_score_of_an_answer():
    assert list(text_metrics(["loss", "exact_match"])) == ["exact_match"]


def test_rejects_an_unknown_name():
    with pytest.raises(ConfigError, match=r'E-CFG-130 .*"meteor".*Known: loss, exact_match, rouge'):
        text_metrics(["meteor"])


def test_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lorakeet\[eval\]'"):
        text_metrics(["rouge"])
