"""What a person sees: train, Ctrl-C, and what the run's own commands say then, at a terminal of 80 columns."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time

import pytest

PROMPT = "\x1b[?2004h"  # what prompt_toolkit writes when it begins to read
CODE = "import sys; from lorakeet.cli.main import main; sys.argv[0] = 'lorakeet'; main()"


def terminal(*arguments, typed=(), **environment):
    """Run a command at a terminal and type keys, each once a text has been shown; return its exit status and what it wrote."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "xterm", "LORAKEET_COMPILE": "0", "NO_COLOR": "1", "PROMPT_TOOLKIT_NO_CPR": "1"} | environment
        os.execv(sys.executable, [sys.executable, "-c", CODE, *map(str, arguments)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    shown, seen, steps, end = b"", 0, list(typed), time.monotonic() + 180
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # the other side is closed
                break
        if steps and (at := shown.find(steps[0][0].encode(), seen)) >= 0:
            seen = at + len(steps[0][0].encode())
            os.write(terminal, steps.pop(0)[1].encode())
    else:
        os.kill(process, signal.SIGKILL)
    os.close(terminal)
    assert not steps, shown.decode()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), shown.decode()


def test_a_run_is_shown_and_stopped_without_a_broken_line(tmp_path, tiny_model_directory):
    data, run = tmp_path / "sums.jsonl", tmp_path / "my run"
    rows = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    long = ["--max-steps", "2000", "--set", "training_config.eval_strategy=no"]
    status, shown = terminal("train", tiny_model_directory, data, "-o", run, *long, typed=[("tokens/s", "\x03")])
    assert status == 130
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()
    assert max(map(len, (line for line in lines if str(tmp_path) not in line))) <= 80
    assert any("╭─ training" in line for line in lines)
    assert any("tokens/s" in line and "trained on" in line for line in lines)
    assert f"  lorakeet train --resume -o '{run}'" in [re.sub(r"  \S*/lorakeet ", "  lorakeet ", line) for line in lines]
    assert [line for line in lines if line.strip()][-1] == "Interrupted."


def test_a_chat_at_a_terminal(tmp_path, tiny_model_directory):
    pytest.importorskip("prompt_toolkit")
    typed = [
        ("/exit leaves", ""),
        (PROMPT, "hello\x1b\rfox\r"),
        (PROMPT, "world\r\x03"),
        (PROMPT, "/stats\r"),
        ("so far.", ""),
        (PROMPT, "/undo\r"),
        ("are forgotten.", ""),
        (PROMPT, "/set seed 3\r"),
        ("seed is 3.", ""),
        (PROMPT, f"/save {tmp_path}/said.jsonl\r"),
        ("Saved in", ""),
        (PROMPT, "/exit\r"),
    ]
    state = {"XDG_STATE_HOME": str(tmp_path)}
    status, shown = terminal("chat", tiny_model_directory, "--max-new-tokens", "9", typed=typed, **state)
    assert (status, "Traceback" in shown) == (0, False)
    saved = json.loads((tmp_path / "said.jsonl").read_text())
    assert [message["role"] for message in saved["messages"]][::2] == ["user"] * (len(saved["messages"]) // 2)
    assert saved["messages"][0]["content"] == "hello\nfox"
    history = tmp_path / "lorakeet" / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert "+hello\n+fox\n" in history.read_text()
    before = history.read_bytes()
    again = [("/exit leaves", ""), (PROMPT, "/exit\r")]
    assert terminal("chat", tiny_model_directory, "--no-history", typed=again, **state)[0] == 0
    assert history.read_bytes() == before
