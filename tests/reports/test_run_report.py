"""The report tells what the run directory holds, whatever state that is in, and nothing a row says becomes code."""

import json
import urllib.error
import urllib.request
from threading import Thread

import pytest

from lorakeet.cli import main
from lorakeet.errors import CheckpointError, ConfigError
from lorakeet.reports.page import json_for_html, visible
from lorakeet.reports.run_report import report_html, write_report
from lorakeet.reports.watch import build_server
from tests.browser import SCHEMES, WIDTHS, looks_right, shown
from tests.reports.conftest import write_lines, write_run

HOSTILE = "<script>alert(1)</script></textarea></pre><img src=x onerror=alert(1)>{{ 7*7 }}\u202e\u200fabc\u0000"


def test_a_report_tells_the_numbers_of_its_run(run_directory):
    text = write_report(run_directory).read_text(encoding="utf-8")
    assert "0.5135" in text, "held-out loss after training"
    assert "before: 2.5000" in text
    assert "2.5 GB" in text
    assert "61" in text
    assert "1 min 1 s" in text, "predicted"
    assert "1 min 0 s" in text, "measured"
    assert "−2 %" in text or "-2 %" in text
    assert "I do not know." in text
    assert "lorakeet train --config" in text


def test_the_ledger_names_hard_and_rising_rows(run_directory):
    text = report_html([run_directory])
    hardest = text[text.index("Hardest rows") : text.index("Rows whose loss rises")]
    assert hardest.index("rows.jsonl:12<") < hardest.index("rows.jsonl:60<") < hardest.index("rows.jsonl:59<")
    rising = text[text.index("Rows whose loss rises") :]
    assert "rows.jsonl:12<" in rising
    assert "rows.jsonl:60<" not in rising


@pytest.mark.parametrize("missing", ["metrics.jsonl", "samples.jsonl", "rows.jsonl", "prediction.json"])
def test_a_report_needs_nothing_but_a_configuration(run_directory, missing):
    (run_directory / missing).unlink()
    assert "Configuration" in report_html([run_directory])


def test_a_run_that_was_cut_off_is_shown_as_far_as_it_came(run_directory):
    with (run_directory / "metrics.jsonl").open("a") as file:
        file.write('not JSON\n[]\n{"step": 7}\n{"step": 201, "loss": "NaN"}\n{"step": 201, "lo')
    text = report_html([run_directory])
    assert "Not finished: the last logged step is 200" in text


def test_hostile_text_stays_text(tmp_path):
    run = write_run(tmp_path / "run", text=HOSTILE)
    rows = [{"epoch": 1, "place": f"{HOSTILE}:1", "loss": 1.0}]
    write_lines(run / "rows.jsonl", rows)
    (run / "data.json").write_text(
        json.dumps({"rows": [{"place": HOSTILE, "parts": [["learned", HOSTILE]]}], "command": HOSTILE})
    )
    text = report_html([run])
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "\u202e" not in text
    assert "{{ 7*7 }}" in text
    assert text.count("</pre>") == text.count("<pre")


def test_no_text_ends_the_data_of_the_charts():
    assert json.loads(json_for_html(["</script><!--"])) == ["</script><!--"]
    assert "<" not in json_for_html(["</script><!--"])
    assert visible("a\u202eb\tc\n") == "a\\u202eb\tc\n"


def test_a_large_run_with_large_answers_stays_small(tmp_path):
    run = write_run(tmp_path / "run", num_steps=100_000, num_rows=50_000, num_epochs=2, text="x" * 1_000_000)
    assert len(report_html([run]).encode()) <= 1_500_000


def test_only_pages_of_ours_are_overwritten(run_directory, tmp_path, capsys):
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine")
    assert main.run(["report", str(run_directory), "-o", str(mine)]) == 2
    assert "E-CFG-250" in capsys.readouterr().err
    assert mine.read_text() == "<p>mine"
    for _ in range(2):
        assert main.run(["report", str(run_directory)]) == 0
    assert (run_directory / "report.html").is_file()


def test_no_run_is_said_to_be_none(tmp_path):
    with pytest.raises(CheckpointError, match="E-CKPT-100"):
        report_html([tmp_path])


@pytest.fixture
def address(run_directory):
    with build_server([run_directory]) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_watch_serves_the_newest_page_on_loopback_alone(address, run_directory):
    assert "step 200" in urllib.request.urlopen(address).read().decode()
    write_lines(run_directory / "metrics.jsonl", [{"step": 3, "epoch": 0.1, "loss": 1.0}])
    assert "step 3," in urllib.request.urlopen(address).read().decode()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "evil.example"}))
    with pytest.raises(ConfigError, match="E-CFG-251"):
        build_server([run_directory], int(address.rsplit(":", 1)[1].strip("/")))


# --- In a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_report_is_readable_everywhere(browser, tmp_path, width, scheme):
    run = write_run(tmp_path / "run", text=HOSTILE)
    with shown(browser, write_report(run).as_uri(), width, scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
        looks_right(page, width)
        drawn = page.evaluate("[...lorakeet.drawn.values()].map((u) => u.data.map((line) => line.length))")
        assert len(drawn) == 6
        assert all(min(lengths) >= 60 for lengths in drawn)
        assert page.locator("canvas").count() == 6


def test_charts_are_read_with_the_keyboard(browser, run_directory):
    with shown(browser, write_report(run_directory).as_uri()) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.dataset.chart") == "loss"
        page.keyboard.press("End")
        assert page.locator("[data-chart=loss] .spoken").text_content().startswith("step 200: training")
        page.keyboard.press("ArrowLeft")
        assert "step 199:" in page.locator("[data-chart=loss] .spoken").text_content()
        page.keyboard.press("+")
        width = "(() => { const { min, max } = [...lorakeet.drawn.values()][0].scales.x; return max - min })()"
        assert page.evaluate(width) < 150
        page.keyboard.press("0")
        assert page.evaluate(width) >= 199


def test_several_runs_lie_over_each_other(browser, tmp_path):
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", lr=1e-3)]
    path = tmp_path / "both.html"
    path.write_text(report_html(runs), encoding="utf-8")
    with shown(browser, path.as_uri()) as page:
        looks_right(page, 1280)
        assert page.locator("#differences tbody th").all_text_contents() == ["training_config.learning_rate"]
        labels = page.evaluate("[...lorakeet.drawn.values()][0].series.map((line) => line.label)")
        assert labels == ["step", "one: training, smoothed", "one: held out", "two: training, smoothed", "two: held out"]


def test_a_watched_page_renews_itself(browser, address, run_directory):
    page = browser.new_page()
    page.clock.install()
    page.goto(address)
    write_lines(run_directory / "metrics.jsonl", [{"step": step, "epoch": 0.1, "loss": 1.0} for step in (1, 2, 3)])
    page.clock.run_for(6000)
    page.get_by_text("step 3, epoch 0.1").wait_for(timeout=5000)
    assert page.evaluate("lorakeet.drawn.size") == 2
    page.close()


def test_an_evaluation_that_was_kept_is_shown(run_directory):
    answers = [{"place": "a:1", "prompt": "Who?", "reference": "I", "base": {"text": "He"}, "tuned": {"text": "You"}}]
    numbers = {"num_conversations": 1, "base": {"loss": 2.5}, "tuned": {"loss": 1.25}, "answers": answers}
    (run_directory / "evaluation.json").write_text(json.dumps(numbers))
    text = report_html([run_directory])
    assert all(shown in text for shown in ("2.5000", "1.2500", "Who?", ">He<", ">You<"))
    more = {"others": {"<b>second": {"loss": 3.75}}, "differences": {"loss": {"mean": -1.25, "low": -2, "high": 0.5}}}
    (run_directory / "evaluation.json").write_text(json.dumps(numbers | more | {"num_trained_on": 3}))
    text = report_html([run_directory])
    assert all(shown in text for shown in ("&lt;b&gt;second", "3.7500", "-1.250 (-2.000 to +0.500)", "3 of these rows also"))
    (run_directory / "evaluation.json").write_text(json.dumps(numbers | {"base": None}))
    assert "1.2500" in report_html([run_directory])


def test_proofs_of_the_run_are_shown_and_what_makes_them_if_there_are_none(run_directory):
    assert f"lorakeet verify {run_directory}" in report_html([run_directory])
    passed = {"name": "packed = separate", "passed": True, "error": 2.1e-7, "tolerance": 1.6e-6, "fix": ""}
    failed = {"name": "no row sees another", "passed": False, "error": 3.0, "tolerance": 0.0, "fix": f"Stop {HOSTILE}"}
    found = {"passed": False, "quick": True, "about": {"device": "cpu"}, "proofs": [passed, failed, "damaged"]}
    (run_directory / "proofs.json").write_text(json.dumps(found))
    text = report_html([run_directory])
    assert text.index("packed = separate") < text.index("2.1e-07") < text.index("1.6e-06") < text.index("no row sees another")
    assert "Stop &lt;script&gt;" in text
    assert "These are the quick ones" in text
