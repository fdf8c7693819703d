"""The page of a check: what was checked and when, readable everywhere, and nothing a row says becomes code."""

import json
import time
from dataclasses import replace

import pytest

from lorakeet.checking.check import check_rows
from lorakeet.config import resolve_config
from lorakeet.errors import ConfigError
from lorakeet.reports.check_page import check_html, write_check_page
from tests.browser import SCHEMES, WIDTHS, looks_right, shown
from tests.cli.conftest import tiny_model_directory  # noqa: F401

HOSTILE = "</pre><img src=x onerror=alert(1)>\u202eabc"


@pytest.fixture(scope="module")
def result(tmp_path_factory, tiny_model_directory):  # noqa: F811
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    rows = [("What is 2 and 2?", "4"), ("What is 2 and 2?", "5"), (HOSTILE, "<script>alert(1)</script>"), ("y", "word " * 9)]
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    config = resolve_config(
        model=str(tiny_model_directory), sections={"data": {"train": [str(path)]}, "training_config": {"max_length": None}}
    )
    return check_rows(config, num_examples=4)[0]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_is_readable_everywhere(browser, result, tmp_path, width, scheme):
    write_check_page(tmp_path / "check.html", result)
    with shown(browser, (tmp_path / "check.html").as_uri(), width, scheme) as page:
        looks_right(page, width)
        assert page.evaluate("innerWidth") == width, "the viewport is the device's"
        text = page.locator("body").text_content()
        assert result.config.model in text
        assert page.locator("figure.row").count() == 4
        assert HOSTILE.split("\u202e")[0] in text
        assert "a.jsonl:1" in text
        assert page.locator("img, textarea").count() == 0


def test_the_page_says_what_was_checked_when_and_by_which_command_and_what_the_run_will_take(result, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/lorakeet", "check", "demo", "my rows.jsonl"])
    cost = {"steps": 60, "seconds": 250.0, "tokens_per_second": 512.0, "peak_memory_bytes": 2.1e9}
    page = check_html(replace(result, report=replace(result.report, cost=cost, warnings=["The learning rate 3 is far above"])))
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert f"Checked for {result.config.model} on {time.strftime('%Y-%m-%d ')}" in page
    assert "lorakeet check demo &#39;my rows.jsonl&#39;" in page
    assert "4 min 10 s" in page
    assert "60 steps, 512 tokens/s" in page
    assert "warning: The learning rate 3 is far above" in page


def test_a_page_that_cannot_be_written_is_an_error(result, tmp_path):
    with pytest.raises(ConfigError, match="E-CFG-46"):
        write_check_page(tmp_path / "no" / "check.html", result)
