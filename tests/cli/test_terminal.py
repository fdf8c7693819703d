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

CODE = "import sys; from lorakeet.cli.main import main; sys.argv[0] = 'lorakeet'; main()"


def terminal(*arguments, interrupt_at=None):
    """Run a command at a terminal, with Ctrl-C once it has shown a text; return its exit status and what it wrote."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "xterm", "LORAKEET_COMPILE": "0", "NO_COLOR": "1"}
        os.execv(sys.executable, [sys.executable, "-c", CODE, *map(str, arguments)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    shown, end = b"", time.monotonic() + 180
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # the other side is closed
                break
        if interrupt_at is not None and interrupt_at.encode() in shown:
            os.write(terminal, b"\x03")
            interrupt_at = None
    else:
        os.kill(process, signal.SIGKILL)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), shown.decode()


def test_a_run_is_shown_and_stopped_without_a_broken_line(tmp_path, tiny_model_directory):
    data, run = tmp_path / "sums.jsonl", tmp_path / "my run"
    rows = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    long = ["--max-steps", "2000", "--set", "training_config.eval_strategy=no"]
    status, shown = terminal("train", tiny_model_directory, data, "-o", run, *long, interrupt_at="tokens/s")
    assert status == 130
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()
    assert max(map(len, (line for line in lines if str(tmp_path) not in line))) <= 80
    assert any("╭─ training" in line for line in lines)
    assert any("tokens/s" in line and "trained on" in line for line in lines)
    assert f"  lorakeet train --resume -o '{run}'" in [re.sub(r"  \S*/lorakeet ", "  lorakeet ", line) for line in lines]
    assert [line for line in lines if line.strip()][-1] == "Interrupted."
