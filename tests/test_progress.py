"""Work is shown on stderr: a bar in a terminal that leaves nothing behind, plain lines in a pipe, nothing if nobody asks."""

import io
import logging

import pytest
from rich.console import Console

from lorakeet import progress


@pytest.fixture
def terminal(monkeypatch):
    """Put a terminal of 80 columns in the place of stderr; return what it is sent."""
    sent = io.StringIO()
    console = Console(file=sent, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "console", lambda: console)
    return sent


def test_a_terminal_shows_a_bar_with_the_time_left_and_clears_it(terminal, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.shown():
        for done in (0, 4, 8):
            progress.report("evaluating", done, 16)
        assert str(progress._current._work) == "8 of 16, 2 s left"
    assert "evaluating ━" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")
    assert progress._current is None


def test_what_a_terminal_shows_leaves_room_for_ctrl_c(terminal):
    with progress.shown():
        progress.report("loading " + "x" * 100)
    lines = [line for line in terminal.getvalue().replace("\r", "\n").splitlines() if "loading" in line]
    assert lines
    assert all(len(line.split("\x1b")[0]) <= 78 for line in lines)


def test_a_pipe_gets_plain_lines_now_and_then(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.shown():
        progress.report("loading phi3-mini")
        for done in range(101):
            progress.report("base: answers", done, 100)
            now += 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "Base: answers: 3 of 100, 1 min 37 s left",
        "Base: answers: 33 of 100, 1 min 7 s left",
        "Base: answers: 63 of 100, 37 s left",
        "Base: answers: 93 of 100, 7 s left",
    ]


def test_nothing_is_shown_unless_somebody_asks(capsys):
    progress.report("loading phi3-mini")
    assert capsys.readouterr().err == ""


def test_messages_wrap_at_words_and_commands_stay_whole(terminal):
    command = "lorakeet train --resume -o 'runs/a directory with quite a long name, as people have them'"
    progress.say(f"Stopped after step 3 of 60. Go on with: {command}")
    assert terminal.getvalue().splitlines() == ["Stopped after step 3 of 60. Go on with:", f"  {command}"]


def test_a_log_line_stands_above_the_bar(terminal):
    logger = logging.Logger("test")
    logger.addHandler(progress.LogHandler())
    with progress.shown():
        progress.report("loading phi3-mini")
        logger.info("[bold]rows[/x] " + "word " * 20)
    lines = terminal.getvalue().replace("\r", "\n").splitlines()
    (at,) = [i for i, line in enumerate(lines) if "[bold]rows[/x]" in line]
    assert lines[at].rstrip().endswith("word")  # no word is cut
    assert "loading phi3-mini ━" in "".join(lines[at:])


def test_a_pipe_gets_a_message_in_one_line(capsys):
    progress.say("word " * 40)
    assert capsys.readouterr().err.count("\n") == 1
