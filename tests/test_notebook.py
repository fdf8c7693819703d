"""What a notebook shows is text first: nothing of a model or a row becomes markup."""

from pathlib import Path

from lorakeet import notebook
from lorakeet.api import Run
from lorakeet.evaluation.compare import Comparison, Measurement
from lorakeet.evaluation.perplexity import EvalLoss
from lorakeet.infer.chat_session import Reply

HOSTILE = "<script>alert(1)</script>\n& </span>"


def test_a_reply_shows_its_text_and_pace():
    shown = Reply(HOSTILE, 10, 4, "stop", 2.0)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "2.0 a second" in shown


def test_a_comparison_shows_base_beside_tuned():
    tuned, base = Measurement(None, {"exact_match": 0.75}), Measurement(None, {"exact_match": 0.25})
    shown = Comparison(tuned, base, 4)._repr_html_()
    assert shown.index(">0.25<") < shown.index(">0.75<")
    assert ">base<" not in Comparison(tuned, None, 4)._repr_html_()


def test_losses_have_four_digits():
    tuned = Measurement(EvalLoss(1.23456, 10, 1), {})
    assert ">1.235<" in Comparison(tuned, None, 1)._repr_html_()


def test_tables_escape_every_cell():
    shown = notebook.table([HOSTILE], [[HOSTILE], [None], [3]])
    assert shown.count("&lt;script&gt;") == 2
    assert "<script>" not in shown


def test_a_run_shows_its_summary(tmp_path: Path):
    row = '{"step": 3, "loss": 1.5, "elapsed_s": 2.0, "num_tokens": 50, "peak_memory_bytes": 9}\n'
    (tmp_path / "metrics.jsonl").write_text(row, encoding="utf-8")
    shown = Run(tmp_path)._repr_html_()
    assert ">1.5<" in shown
    assert f">{tmp_path.name}<" in shown
