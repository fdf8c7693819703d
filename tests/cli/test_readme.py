"""The README's three lines about kill -9, run as they stand, but for a smaller model and a shorter wait."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_kill_and_resume_as_the_readme_says(tmp_path, tiny_model_directory):
    section = README.read_text(encoding="utf-8").split("## Pull the plug")[1]
    block = re.search(r"```\n(.*?)```", section, re.S).group(1)
    begin, kill, resume = block.splitlines()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{i}?", "answer": str(i)}) + "\n" for i in range(40)))
    assert " demo demo " in begin
    begin = begin.replace(" demo demo ", f" {tiny_model_directory} {rows} ").replace("save_steps=20", "save_steps=5")
    wait = "until [ -d runs/plug/checkpoints/step-000005 ]; do sleep 0.05; done"
    straight = begin.replace("runs/plug", "runs/straight").partition(" & ")[0]
    program = tmp_path / "bin" / "lorakeet"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from lorakeet.cli.main import main; main()' \"$@\"\n")
    program.chmod(0o755)
    environment = {**os.environ, "LORAKEET_COMPILE": "0", "PATH": f"{program.parent}:{os.environ['PATH']}"}
    script = "\n".join([straight, begin.replace("sleep 120", wait), kill, resume])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Resuming from" in done.stderr
    files = [tmp_path / "runs" / run / "adapter" / "adapter_model.safetensors" for run in ("straight", "plug")]
    assert files[0].read_bytes() == files[1].read_bytes()
