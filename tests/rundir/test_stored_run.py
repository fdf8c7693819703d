"""A run directory of an earlier version goes on loading and resuming: tests/stored holds one that ended and one that died.

Both were made by one command on rows.jsonl, six steps with dropout; the second process died after step 4.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lorakeet
from tests.cli import conftest as cli

STORED = Path(__file__).parents[1] / "stored"
own_cache = cli.own_cache


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Copy what is stored, where its configuration finds it."""
    folder = tmp_path / "stored"
    shutil.copytree(STORED, folder)
    monkeypatch.chdir(folder)
    return folder


def test_a_finished_run_loads_answers_and_tells_its_numbers(stored):
    run = lorakeet.open_run("run")
    assert run.summary["steps"] == 6
    assert run.summary["adapter_step"] == 6
    assert [row["step"] for row in run.metrics if "eval_loss" in row] == [0, 3, 6]
    assert run.config.peft_config.r == 4
    reply = run.chat(max_new_tokens=4).ask("What is 1 and 2?")
    assert reply.num_answer_tokens > 0


def test_a_run_that_died_resumes_and_ends_as_the_uninterrupted_one(stored):
    # In a process of its own, since compiled layers draw other dropout masks, and a process decides once whether it compiles.
    code = "import lorakeet; lorakeet.train(config=lorakeet.open_run('interrupted').config, resume=True)"
    environment = os.environ | {"LORAKEET_COMPILE": "0", "PYTHONPATH": os.pathsep.join(map(str, filter(None, sys.path)))}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    run = lorakeet.open_run("interrupted")
    ended = load_file("run/adapter/adapter_model.safetensors")
    resumed = load_file(run.adapter_directory / "adapter_model.safetensors")
    assert resumed.keys() == ended.keys()
    # Another machine rounds in another way; on the one that stored them they are equal to the bit.
    for name, tensor in ended.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-2, atol=2e-4)
    assert [row["step"] for row in run.metrics if "eval_loss" in row] == [0, 3, 6]
    assert Path("interrupted/train.log").read_text().count("Resuming from") == 1
