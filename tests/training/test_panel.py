"""The panel of a run: what it shows, that it fits the terminal, and what stays when it goes."""

import io

import pytest
from rich.console import Console

from lorakeet import progress
from lorakeet.rundir.rows import EvaluationRow, StepRow
from lorakeet.training.panel import sparkline
from lorakeet.training.reporting import ConsoleReporter


def step_row(step, loss):
    return StepRow(
        step=step,
        epoch=0.1,
        loss=loss,
        grad_norm=1.0,
        learning_rate=1e-4,
        num_tokens=1000 * step,
        num_supervised_tokens=250 * step,
        tokens_per_second=1204.0,
        elapsed_s=2.0 * step,
        peak_memory_bytes=2_710_000_000,
        seconds_left=65.0,
    )


def drawn(reporter, width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    console.print(reporter._panel)
    return console.file.getvalue().splitlines()


@pytest.fixture
def reporter():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    reporter = ConsoleReporter(60, title="training demo", evaluation_every=20, console=console)
    yield reporter
    reporter.close()


def test_the_panel_says_what_a_person_waits_for(reporter):
    for step in range(1, 25):
        reporter.step(step_row(step, 2 - step / 20))
    shown = drawn(reporter, 80)
    assert shown[0].startswith("╭─ training demo ─")
    assert "step 24 of 60 ━" in shown[1]
    assert shown[1].endswith("1 min 5 s left │")
    assert "loss 0.8000  ██" in shown[2]
    assert "1,204 tokens/s, 301 trained on   memory 2.71 GB   evaluation at step 40" in shown[3]
    assert {len(line) for line in shown} == {78}


def test_the_panel_says_that_it_evaluates_until_the_next_step(reporter):
    with_work = "evaluating held-out rows: 0 of 216, 0 s so far"
    progress.report("evaluating held-out rows", 0, 216)
    assert any(with_work in line for line in drawn(reporter, 80))
    reporter.step(step_row(1, 2.0))
    assert not any("evaluating" in line for line in drawn(reporter, 80))


@pytest.mark.parametrize("width", [24, 40, 200])
def test_the_panel_fits_any_terminal(reporter, width):
    reporter.step(step_row(1, 2.0))
    assert max(map(len, drawn(reporter, width))) <= min(width - 2, 100)


def test_lines_stand_above_the_panel_and_one_stays_of_it(reporter):
    reporter.step(step_row(1, 2.0))
    reporter.log(EvaluationRow(step=1, epoch=0.1, eval_loss=1.5, num_supervised_tokens=9))
    reporter.step(step_row(2, 1.0))
    reporter.close()
    lines = reporter._console.file.getvalue().splitlines()
    assert any(line.endswith("step     1  held-out loss 1.5000") for line in lines)
    assert lines[-1].endswith("step     2  loss 2.000 █▁ 1.000  4 s, 1,204 tokens/s")
    progress.report("nothing", 1, 2)  # nobody listens any more


def test_a_curve_of_many_steps_keeps_its_width_and_shape():
    assert sparkline([1.0], 40) == "▁"
    assert sparkline(list(range(800, 0, -1)), 8) == "█▇▆▅▄▃▂▁"
