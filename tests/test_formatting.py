"""Quantities read as people write them, and a printed command runs as it stands."""

import shlex

import pytest

from lorakeet import formatting


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (8.34, "8.3 s"), (9.97, "10 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (11_100, "3 h 5 min")],
)
def test_durations(seconds, text):
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(12, "12 bytes"), (12_300, "12.3 kB"), (999_900, "1 MB"), (350e6, "350 MB"), (2.714e9, "2.71 GB"), (1.38e11, "138 GB")],
)
def test_sizes(num_bytes, text):
    assert formatting.size(num_bytes) == text


def test_counts():
    assert [formatting.count(n, "row") for n in (0, 1, 2260)] == ["0 rows", "1 row", "2,260 rows"]
    assert formatting.count(2, "copy", "copies") == "2 copies"


def test_a_command_is_quoted_and_found(monkeypatch):
    monkeypatch.setattr(formatting.shutil, "which", lambda name: f"/bin/{name}")
    assert formatting.command("chat", "runs/my run") == "lorakeet chat 'runs/my run'"


def test_a_command_that_is_not_on_the_path_has_its_own(monkeypatch, tmp_path):
    (tmp_path / "lorakeet").touch()
    monkeypatch.setattr(formatting.shutil, "which", lambda name: None)
    monkeypatch.setattr(formatting.sys, "executable", str(tmp_path / "python"))
    assert shlex.split(formatting.command("chat", "a b")) == [str(tmp_path / "lorakeet"), "chat", "a b"]


def test_only_a_command_at_the_end_is_one():
    assert formatting.COMMAND.search("Finish it: /opt/my/bin/lorakeet train --resume")[0].startswith("/opt/my/bin/lorakeet")
    assert formatting.COMMAND.search("Install it with: pip install 'lorakeet[serve]'")
    assert formatting.COMMAND.search("step-000029: lorakeet 898a3af57608 is now 8783e83b6406.") is None
