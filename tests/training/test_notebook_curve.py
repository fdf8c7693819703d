"""The curve in a notebook: one object, drawn anew."""

import dataclasses

import pytest

from lorakeet import notebook
from lorakeet.rundir.rows import StepRow, metrics_row
from lorakeet.training.notebook_curve import NotebookCurve, is_in_notebook

pytest.importorskip("IPython")


def step_row(step, loss):
    return metrics_row({field.name: 1 for field in dataclasses.fields(StepRow)} | {"step": step, "loss": loss})


def test_outside_of_a_notebook_there_is_none():
    assert not is_in_notebook()


def test_the_curve_is_one_object_with_a_point_for_each_row(monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    try:
        monkeypatch.setattr(shell, "kernel", object(), raising=False)
        assert is_in_notebook()
        with capture_output() as captured:
            reporter = NotebookCurve(total_steps=3)
            reporter.step(step_row(1, 3.0))
            for step, loss in enumerate([3.0, 2.0, 2.5], 1):
                reporter.log(step_row(step, loss))
            reporter.close()
    finally:
        InteractiveShell.clear_instance()
    first, *_, last = captured.outputs
    assert '<progress max="3" value="1">' in first.data["text/html"]
    assert "polyline" not in first.data["text/html"]
    assert "step 3 of 3" in last.data["text/html"]
    [points] = [part.split('"')[0] for part in last.data["text/html"].split('points="')[1:]]
    assert points == "0.0,0.0 240.0,120.0 480.0,60.0"


def test_a_single_point_is_drawn():
    assert 'points="240.0,60.0"' in notebook.curve([(1, 2.0)])


def test_a_long_run_keeps_a_curve_that_can_be_sent(monkeypatch):
    monkeypatch.setattr(NotebookCurve, "_draw", lambda *_: None)
    reporter = NotebookCurve(total_steps=5000)
    for step in range(1, 5001):
        reporter.log(step_row(step, 1.0))
    assert 200 <= len(reporter._points) <= 400
    assert reporter._points[0][0] == 1
    assert reporter._points[-1][0] > 4900
