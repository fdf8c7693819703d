"""`torchrun -m lorakeet train`: one display, one set of files, one voice when something goes wrong."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lorakeet.cli import main

OPTIONS = ["--set", "peft_config.r=2", "--set", "training_config.logging_steps=1", "--set", "training_config.bf16=false"]


def command(model, data, run, *more):
    return ["train", str(model), str(data), "-o", str(run), *OPTIONS, *more]


def steps(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


def test_two_processes_make_one_run(run_to_end, tiny_model_directory, sums, tmp_path):
    run, alone = tmp_path / "two", tmp_path / "one"
    start = command(tiny_model_directory, sums, run, "--max-steps", "6", "--batch-size", "2", "--json")
    ended = run_to_end("-m", "lorakeet", *start)
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    assert json.loads(line)["steps"] == 6
    assert ended.stderr.count("parameters train") == 1
    assert re.findall(r"step +(\d+)/6", ended.stderr) == ["1", "2", "3", "4", "5", "6"]
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith("step")] == ["step-000006"]
    assert main.run(command(tiny_model_directory, sums, alone, "--max-steps", "6", "--batch-size", "4")) == 0
    name = "adapter/adapter_model.safetensors"
    shared, truth = load_file(run / name), load_file(alone / name)
    assert shared.keys() == truth.keys()
    for key, value in truth.items():
        assert ((shared[key] - value).norm() / value.norm()).item() < 1e-5, key


def test_a_signal_is_heard_by_all_and_one_process_goes_on(torchrun, tiny_model_directory, sums, tmp_path, caplog):
    run = tmp_path / "stopped"
    last = ["--max-steps", "300"]
    process = torchrun("-m", "lorakeet", *command(tiny_model_directory, sums, run, *last, "--batch-size", "2"))
    try:
        deadline = time.monotonic() + 160
        while not ((run / "metrics.jsonl").exists() and steps(run)) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0
    (stopped_at,) = re.findall(r"Stopped after step (\d+)", err)
    assert err.count("Interrupted.") == 1, err
    (saved,) = (path.name for path in (run / "checkpoints").iterdir() if path.name.startswith("step"))
    assert int(saved.removeprefix("step-")) == int(stopped_at) < 300
    assert not (run / "adapter").exists()
    resume = ["train", "--resume", "-o", str(run)]
    assert main.run(resume) == 2  # half the rows a step: not the same run
    assert main.run([*resume, "--batch-size", "4"]) == 0
    assert "1 processes go on where 2 stopped" in caplog.text
    assert steps(run) == list(range(1, 301))


@pytest.mark.parametrize(("how", "code"), [("raises", "E-TRAIN-99"), ("killed", "E-TRAIN-130")])
def test_a_process_that_fails_ends_all_and_says_why_once(run_to_end, tiny_model_directory, sums, tmp_path, how, code):
    start = command(tiny_model_directory, sums, tmp_path / "run", "--max-steps", "100000")
    began = time.monotonic()
    ended = run_to_end("-m", "tests.distributed.failing", how, *start)
    assert time.monotonic() - began < 80
    assert ended.returncode != 0
    lines = [line for line in ended.stderr.splitlines() if re.match(r"(E-[A-Z]+-\d+|This is a defect|Interrupted)", line)]
    assert len(lines) == 1
    assert lines[0].startswith(code)
    if how == "raises":
        assert lines[0].startswith("E-TRAIN-99 step 3 seeded failure in the step on rows")
        assert set(re.findall(r"exitcode +: (-?\d+)", ended.stderr)) <= {"2", "-15"}


def test_what_is_wrong_for_all_is_said_once(run_to_end, tiny_model_directory, sums, tmp_path):
    ended = run_to_end("-m", "lorakeet", *command(tiny_model_directory, sums, tmp_path / "run", "--set", "data.no=1"))
    assert ended.returncode != 0
    assert ended.stderr.count("E-CFG-31") == 1
    assert not (tmp_path / "run").exists()


def test_the_example_script_runs_under_torchrun(run_to_end, tiny_model_directory, sums, tmp_path):
    script = Path(__file__).parents[2] / "examples" / "finetune_phi3.py"
    ended = run_to_end(str(script), str(tiny_model_directory), str(sums), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("Outcome") == 1
    assert (tmp_path / "checkpoint_dir" / "adapter" / "adapter_model.safetensors").is_file()
