"""Base and tuned side by side: the base column is the base model's own, and nothing of it stays behind."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from lorakeet.data.split import Repeats
from lorakeet.errors import DataError
from lorakeet.evaluation.compare import Evaluation
from lorakeet.evaluation.metrics import text_metrics
from lorakeet.evaluation.tables import answers_to_dicts, print_comparison, to_dict


@pytest.fixture
def evaluation(conversations):
    return Evaluation(conversations, text_metrics(["exact_match", "rouge"]), max_new_tokens=6, batch_size=4)


def test_the_base_column_is_the_base_models(evaluation, base, tuned):
    before = evaluation.measure(tuned)
    comparison = evaluation.compare(tuned)
    assert comparison.base == evaluation.measure(base)
    assert comparison.tuned == before == evaluation.measure(tuned)
    assert comparison.tuned.loss != comparison.base.loss
    assert [answer.text for answer in comparison.tuned.answers] != [answer.text for answer in comparison.base.answers]
    assert list(comparison.tuned.numbers) == [
        *["loss", "perplexity", "exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum", "stop_rate", "answer_tokens"]
    ]


def test_the_base_can_be_left_out(evaluation, tuned):
    comparison = evaluation.compare(tuned, with_base=False)
    assert comparison.base is None
    assert to_dict(comparison)["base"] is None


def test_loss_alone_generates_nothing(conversations, tuned, monkeypatch):
    monkeypatch.setattr("lorakeet.evaluation.compare.generate_answers", lambda *_, **__: pytest.fail("generated"))
    comparison = Evaluation(conversations, {}).compare(tuned)
    assert list(comparison.tuned.numbers) == ["loss", "perplexity"]
    assert answers_to_dicts(comparison) == []


def test_json_holds_every_number_and_answer(evaluation, tuned):
    comparison = evaluation.compare(tuned)
    values = json.loads(json.dumps(to_dict(comparison)))
    assert values["num_conversations"] == 9
    assert values["num_supervised_tokens"] == comparison.tuned.loss.num_supervised_tokens
    assert values["base"] == comparison.base.numbers
    assert values["tuned"] == comparison.tuned.numbers
    rows = json.loads(json.dumps(answers_to_dicts(comparison)))
    assert [row["tuned"]["text"] for row in rows] == [answer.text for answer in comparison.tuned.answers]
    assert [row["base"]["text"] for row in rows] == [answer.text for answer in comparison.base.answers]
    assert rows[2]["reference"] == "brown fox jumps over the lazy dog"


def test_the_table_shows_both_columns_and_reads_no_markup(evaluation, tuned, conversations):
    comparison = evaluation.compare(tuned)
    object.__setattr__(comparison.tuned.answers[0], "text", "[bold]as written[/nonsense]")
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=200), num_examples=9)
    text = out.getvalue()
    assert f"{comparison.base.loss.loss:.4f}" in text
    assert f"{comparison.tuned.loss.loss:.4f}" in text
    assert "[bold]as written[/nonsense]" in text
    assert conversations[1].messages[-1].content in text


def test_answers_are_readable_in_80_columns(evaluation, tuned):
    comparison = evaluation.compare(tuned)
    long = "a sentence of seven words for everyone"
    object.__setattr__(comparison.tuned.answers[0], "text", f"{long}\n{'x' * 90}")
    for answer in (*comparison.tuned.answers, *comparison.base.answers):  # then none is better, and none has changed
        answer.scores.update(dict.fromkeys(answer.scores, 0.0))
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=80), num_examples=1)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    first = [line.split()[0] for line in lines[-6:] if line]
    assert [name for name in first if name in ("prompt", "reference", "base", "tuned")] == [
        "prompt",
        "reference",
        "base",
        "tuned",
    ]
    assert f"tuned      {long}" in lines
    assert lines[-2:] == [" " * 11 + "x" * 69, " " * 11 + "x" * 21]


def test_rejects_no_rows_at_all():
    with pytest.raises(DataError, match="E-DATA-28"):
        Evaluation([], {})


def test_progress_tells_of_every_part(evaluation, tuned):
    told = {}
    dataclasses.replace(evaluation, on_progress=lambda what, done, total: told.update({what: (done, total)})).compare(tuned)
    assert list(told) == ["base: held-out loss", "base: answers", "tuned: held-out loss", "tuned: answers"]
    assert told["tuned: held-out loss"] == told["tuned: answers"] == (9, 9)


def test_other_runs_stand_beside_and_differences_say_how_sure_they_are(evaluation, tuned, base, conversations):
    compared = evaluation.compare(tuned)
    both = dataclasses.replace(compared, others={"other": evaluation.measure(base)})
    assert list(both.columns) == ["base", "tuned", "other"]
    assert both.columns["other"].numbers == both.base.numbers
    first = both.differences["rougeL"]
    scores = [[answer.scores["rougeL"] for answer in column.answers] for column in (both.tuned, both.base)]
    assert first.mean == pytest.approx((sum(scores[0]) - sum(scores[1])) / 9)
    assert first.low <= first.mean <= first.high
    out = io.StringIO()
    print_comparison(both, Console(file=out, width=80), num_examples=1)
    assert "other" in out.getvalue()
    assert "95 %" in out.getvalue()
    assert "Not certain" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert to_dict(both)["others"]["other"] == both.base.numbers
    assert set(answers_to_dicts(both)[0]) == {"place", "prompt", "reference", "base", "tuned", "other"}


def test_rows_that_were_trained_on_are_counted_and_named(evaluation, tuned):
    repeats = Repeats(2, (("held.jsonl:1", "train.jsonl:5"), ("held.jsonl:3", "train.jsonl:9")))
    compared = dataclasses.replace(evaluation.compare(tuned, with_base=False), trained_on=repeats)
    out = io.StringIO()
    print_comparison(compared, Console(file=out, width=200), num_examples=0)
    assert (
        "2 of these rows also stand in the training data, so they prove little: held.jsonl:1, held.jsonl:3." in out.getvalue()
    )
    assert to_dict(compared)["num_trained_on"] == 2
