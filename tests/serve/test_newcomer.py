"""From `lorakeet train` to an answer in OpenAI's client by copying what the commands print, each in a process of its own."""

import json
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lorakeet.cli.main import run
from tests.cli.conftest import write_tiny_model

pytest.importorskip("fastapi")
pytest.importorskip("openai")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory whose name a shell would split, with a model and rows."""
    folder = tmp_path / 'my first "tuned" model'
    folder.mkdir()
    write_tiny_model(folder / "tiny model")
    rows = [
        {"messages": [{"role": "user", "content": f"Hello {i}"}, {"role": "assistant", "content": f"the fox {i}"}]}
        for i in range(8)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = str(Path(__file__).parents[2] / "src")
    for name, value in {"LORAKEET_CACHE": str(tmp_path / "cache"), "LORAKEET_COMPILE": "0", "PYTHONPATH": root}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    return folder


def copied(text, beginning):
    """Return what stands behind `beginning` in a line of some output."""
    return next(line.removeprefix(beginning) for line in text.splitlines() if line.startswith(beginning))


def printed_lines(process):
    """Return the Python lines that a server prints when it begins: those between two empty ones."""
    while process.stderr.readline().strip():
        pass
    return "".join(iter(process.stderr.readline, "\n"))


def test_what_each_command_prints_is_the_next_one(folder, capsys):
    lorakeet = shlex.quote(str(Path(sys.executable).with_name("lorakeet")))
    train = f"{lorakeet} train 'tiny model' chats.jsonl -o 'runs/first run' --max-steps 8 --lr 3e-2"
    trained = subprocess.run(train, shell=True, capture_output=True, text=True)
    assert trained.returncode == 0, trained.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # 8000, the default, may be taken on the machine of a test
    serve = f"exec {copied(trained.stdout, 'Serve it: ')} --port {port}"
    with subprocess.Popen(serve, shell=True, stderr=subprocess.PIPE, text=True) as server:
        try:
            ask = [sys.executable, "-c", printed_lines(server)]
            asked = subprocess.run(ask, capture_output=True, text=True, timeout=120)
            server.send_signal(signal.SIGINT)
            assert asked.returncode == 0, asked.stderr
            assert server.wait(60) == 130
            assert server.stderr.read() == "Interrupted.\n"
        finally:
            server.kill()
    chat = shlex.split(copied(trained.stdout, "Chat with it: "))
    capsys.readouterr()
    assert run([*chat[1:], "--prompt", "Hello"]) == 0
    assert capsys.readouterr().out == asked.stdout
    assert "fox" in asked.stdout
