"""Scores of answers, held against Google's own scorer."""

import sys

import pytest

from lorakeet.errors import ConfigError, MissingExtraError
from lorakeet.evaluation.metrics import exact_match, text_metrics

PAIRS = [("the lazy dog", "the lazy dog"), ("the lazy dog", "a lazy fox jumps"), ("the lazy dog", ""), ("", "a")]


def test_exact_match_ignores_whitespace_at_the_ends_only():
    assert exact_match("a b", " a b\n") == 1
    assert exact_match("a b", "a  b") == 0
    assert exact_match("a b", "A b") == 0


@pytest.mark.parametrize(("reference", "generated"), PAIRS)
def test_rouge_matches_rouge_score(reference, generated):
    from rouge_score.rouge_scorer import RougeScorer

    metrics = text_metrics(["rouge"])
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, generated)
    assert {name: metric(reference, generated) for name, metric in metrics.items()} == {
        name: score.fmeasure for name, score in expected.items()
    }


def test_loss_is_no_score_of_an_answer():
    assert list(text_metrics(["loss", "exact_match"])) == ["exact_match"]


def test_rejects_an_unknown_name():
    with pytest.raises(ConfigError, match=r'E-CFG-130 .*"bleu".*Known: loss, exact_match, rouge'):
        text_metrics(["bleu"])


def test_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lorakeet\[eval\]'"):
        text_metrics(["rouge"])
