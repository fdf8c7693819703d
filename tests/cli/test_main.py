"""The command line's promises: exit statuses, one line for what the user can mend, and a quick start."""

import json
import os
import subprocess
import sys

import pytest

from lorakeet.cli import main
from lorakeet.errors import DataError


@pytest.mark.parametrize("command", [command.name for command in main.app.registered_commands])
def test_every_command_has_help_with_an_example(command, capsys):
    assert main.run([command, "--help"]) == 0
    assert f"Example: lorakeet {command}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [["nonsense"], ["train", "--nonsense"], ["chat", "--max-new-tokens", "x"]])
def test_a_wrong_command_line_is_the_users_to_mend(arguments, capsys):
    assert main.run(arguments) == 2
    assert "Usage" in capsys.readouterr().err


def test_an_error_of_the_users_is_one_line_without_a_traceback(capsys):
    assert main.run(["train", "demo", "no/such/file.jsonl"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("E-DATA-1 no/such/file.jsonl")
    assert captured.out == ""


def test_bad_data_leaves_nothing_behind(tmp_path, capsys):
    data = tmp_path / "chats.jsonl"
    data.write_text('{"messages": [{"role": "User", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n')
    run = tmp_path / "run"
    for _ in range(2):  # the second time shows that the first one left no run in the way
        assert main.run(["train", "demo", str(data), "-o", str(run)]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"E-DATA-20 {data}:1 ")
        assert '"User"' in line
    assert not run.exists()


def test_a_defect_of_ours_shows_where_it_is(monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("cogs")

    monkeypatch.setattr("lorakeet.api.open_run", broken)
    assert main.run(["merge", "run", "-o", "out"]) == 1
    assert "RuntimeError: cogs" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (DataError("E-DATA-4", "0 rows"), 2)])
def test_endings_have_their_status(monkeypatch, error, status):
    def ending(*args, **kwargs):
        raise error

    monkeypatch.setattr("lorakeet.api.open_run", ending)
    assert main.run(["merge", "run", "-o", "out"]) == status


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, lorakeet, lorakeet.cli.main; "
        "print([name for name in ('torch', 'transformers', 'datasets', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("command", "own", "expected"),
    [
        ("train", {}, "PASSIVE"),
        ("train", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ("train", {"GOMP_SPINCOUNT": "100"}, None),
        ("chat", {}, "PASSIVE"),
    ],
)
def test_idle_threads_sleep_unless_the_user_says_how_they_wait(command, own, expected):
    code = (
        "import os, sys\n"
        "from lorakeet.cli import main\n"
        f"sys.argv = ['lorakeet', '{command}', '--help']\n"
        "try:\n    main.main()\n"
        "finally:\n    print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    )
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in names} | own
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == f"{expected} False"


def test_python_names_are_those_of_loralib_and_the_commands():
    import lorakeet

    assert {"Linear", "Embedding", "MergedLinear", "Conv2d", "mark_only_lora_as_trainable", "train", "Run"} <= set(
        dir(lorakeet)
    )
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lorakeet.nonsense  # noqa: B018


def test_a_run_ends_with_json_on_stdout_alone(tmp_path, tiny_model_directory, capsys):
    rows = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(24)]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    arguments = ["train", str(tiny_model_directory), str(data), "-o", str(run), "--max-steps", "3", "--json"]
    assert main.run([*arguments, "--batch-size", "4", "--r", "2"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["run_dir"] == str(run)
    assert summary["steps"] == 3
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) == [
        "adapter",
        "checkpoints",
        "config.yaml",
        "data.json",
        "metrics.jsonl",
        "report.html",
        "rows.jsonl",
        "train.log",
    ]
    proven = json.loads((run / "data.json").read_text())["proofs"]
    assert proven["the tokens before each answer are those that inference sends"] == "24 of 24 rows"
    assert proven["nothing that is trained on was cut off"] == "24 of 24 rows"
    report = (run / "report.html").read_text()
    assert "Proofs" in report
    assert "24 of 24 rows" in report
    # A second run never overwrites the first one.
    assert main.run([*arguments, "--batch-size", "4", "--r", "2"]) == 2
    assert "E-CFG-48" in capsys.readouterr().err


def test_check_predicts_time_and_memory_of_the_configuration_it_is_given(tmp_path, tiny_model_directory, capsys):
    rows = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(24)]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {tiny_model_directory}\ndata: {data}\npeft_config: {{r: 4}}\n")
    arguments = ["--set", "training_config.per_device_train_batch_size=4", "--json"]
    assert main.run(["check", "--config", str(config), *arguments]) == 0
    cost = json.loads(capsys.readouterr().out.splitlines()[-1])["cost"]
    assert cost["train_seconds"] > 0
    assert cost["seconds"] > cost["train_seconds"]
    assert cost["steps"] == 3 * 6  # 23 rows in fours, three epochs
    assert cost["peak_memory_bytes"] > 10**8
    assert main.run(["check", str(tiny_model_directory), str(data), "--no-calibrate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cost"] is None
    assert main.run(["check", str(tiny_model_directory), str(data), "--examples", "0", "--max-steps", "1", "--lr", "3"]) == 0
    out = capsys.readouterr().out
    assert "this run on this machine, predicted from two steps: 1 step in " in out
    assert "warning: The warm-up covers the whole run (1 step), so nothing is trained" in out
    assert "warning: The learning rate 3 is far above what trains adapters" in out


def test_missing_data_is_said_before_a_model_is_loaded(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lorakeet.chat_model.load", lambda *_, **__: pytest.fail("loaded"))
    assert main.run(["train", "demo", "no/such/file.jsonl"]) == 2
    assert "E-DATA-1 no/such/file.jsonl" in capsys.readouterr().err
