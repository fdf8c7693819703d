"""A run that was really trained, used from the command line: chat, evaluate, merge."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

import lorakeet
from lorakeet import api
from lorakeet.cli.main import run
from lorakeet.config import dump_yaml

PEOPLE = ["fox", "dog", "world", "straße", "land", "hello"]


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory, tiny_model_directory):
    """Train a tiny model for a few steps."""
    folder = tmp_path_factory.mktemp("use")
    rows = [
        {"messages": [{"role": "user", "content": f"hello {name} {i}"}, {"role": "assistant", "content": f"the {name}"}]}
        for i in range(5)
        for name in PEOPLE
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"output_dir": str(folder / "run"), "max_steps": 6, "learning_rate": 3e-2, "bf16": False}
    return lorakeet.train(
        str(tiny_model_directory), str(data), training_config=settings, peft_config={"r": 4}, data_config={"eval_fraction": 0.2}
    )


def last_json(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_chat_prints_one_answer(trained_run, capsys):
    directory = str(trained_run.directory)
    question = ["--prompt", "hello fox 1", "--max-new-tokens", "9"]
    assert run(["chat", directory, *question, "--json"]) == 0
    result = last_json(capsys)
    assert result["run_dir"] == directory
    assert result["stop_reason"] in ("stop", "length")
    assert 0 <= result["answer_tokens"] <= 9
    assert result["prompt_tokens"] > 3
    assert result["tokens_per_second"] > 0
    assert run(["chat", directory, *question]) == 0
    assert capsys.readouterr().out == result["answer"] + "\n"
    assert run(["chat", result["model"], *question, "--json"]) == 0
    assert last_json(capsys)["run_dir"] is None


def test_chat_reads_a_pipe(trained_run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello fox 1\n/reset\nhello fox 1\n"))
    assert run(["chat", str(trained_run.directory), "--max-new-tokens", "5"]) == 0
    captured = capsys.readouterr()
    half = len(captured.out) // 2
    assert captured.out[:half] == captured.out[half:] != ""
    assert "Conversation cleared." in captured.err
    assert ">" not in captured.out


def test_chat_refuses_what_it_cannot_do(trained_run, capsys):
    directory = str(trained_run.directory)
    for arguments, code in (
        (["--json"], "E-CFG-131"),
        (["--prompt", "hi", "--temperature", "nan"], "E-CFG-82"),
        (["--prompt", "fox " * 400], "E-CFG-44"),
        (["--prompt", "hi", "--seed", "-1"], "E-CFG-51"),
    ):
        assert run(["chat", directory, *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines()[-1].startswith(code)


def test_evaluate_measures_both_models(trained_run, capsys, tmp_path):
    directory, answers = str(trained_run.directory), tmp_path / "answers.jsonl"
    options = ["--max-new-tokens", "4", "--answers", str(answers)]
    assert run(["evaluate", directory, *options, "--json"]) == 0
    result = last_json(capsys)
    logged = [row["eval_loss"] for row in trained_run.metrics if "eval_loss" in row]
    assert result["base"]["loss"] == pytest.approx(logged[0], rel=1e-4)
    assert result["tuned"]["loss"] == pytest.approx(logged[-1], rel=1e-4)
    assert result["tuned"]["loss"] < result["base"]["loss"]
    assert {"perplexity", "exact_match", "rouge1", "rouge2", "rougeL"} < result["tuned"].keys()
    assert len(answers.read_text().splitlines()) == result["num_conversations"] > 1
    assert run(["evaluate", directory, "--metrics", "loss", "--also", directory, "--max-rows", "2", "--json"]) == 0
    result = last_json(capsys)
    assert result["others"] == {trained_run.directory.name: result["tuned"]}
    assert run(["evaluate", directory, "--metrics", "loss", "--no-base", "--max-rows", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 held-out conversations" in out
    assert "base" not in out
    assert run(["evaluate", directory, "--metrics", "exact_match", "--max-rows", "1", "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert "1 held-out conversation" in out
    assert "1 held-out conversations" not in out
    assert "95 %" not in out
    assert "One row says nothing of other rows" in out


def test_no_run_takes_the_place_of_another_column():
    runs = [api.Run(Path(name)) for name in ("here/mine", "there/mine", "there/tuned", "other")]
    names = list(api.column_names(runs))
    assert names == [str(Path(name).resolve()) for name in ("here/mine", "there/mine", "there/tuned")] + ["other"]


def test_evaluate_takes_other_rows_and_refuses_unknown_metrics(trained_run, capsys, tmp_path):
    other = tmp_path / "other.jsonl"
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the dog"}]}
    other.write_text(json.dumps(row) + "\n")
    assert run(["evaluate", str(trained_run.directory), str(other), "--metrics", "loss,exact_match", "--json"]) == 0
    result = last_json(capsys)
    assert (result["num_conversations"], result["num_trained_on"]) == (1, 0)
    assert run(["evaluate", str(trained_run.directory), "--metrics", "meteor"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("E-CFG-130")


def test_merge_writes_a_model_that_answers_like_the_run(trained_run, capsys, tmp_path):
    output, directory = tmp_path / "merged", str(trained_run.directory)
    assert run(["merge", directory, "-o", str(output), "--json"]) == 0
    result = last_json(capsys)
    assert (result["path"], result["format"], result["dtype"], result["failures"]) == (str(output), "hf", "float32", [])
    assert result["parity"]["num_equal_ids"] == result["parity"]["num_probes"]
    question = ["--prompt", "hello dog 3", "--max-new-tokens", "9", "--json"]
    assert run(["chat", directory, *question]) == 0
    expected = last_json(capsys)["answer"]
    assert run(["chat", str(output), *question]) == 0
    assert last_json(capsys)["answer"] == expected
    assert run(["merge", directory, "-o", str(output)]) == 2
    assert "E-CFG-48" in capsys.readouterr().err


def test_a_run_whose_data_changed_is_merged_and_proven_without_its_rows(trained_run, capsys, tmp_path):
    run_directory = shutil.copytree(trained_run.directory, tmp_path / "run")
    config = trained_run.config
    (original,) = config.data.train
    changed = tmp_path / "rows.jsonl"
    lines = Path(original).read_text().splitlines()
    changed.write_text("\n".join(line.replace("hello", "goodbye") for line in lines) + "\n")
    data = config.data.model_copy(update={"train": [str(changed)]})
    (run_directory / "config.yaml").write_text(dump_yaml(config.model_copy(update={"data": data})))
    assert run(["merge", str(run_directory), "-o", str(tmp_path / "merged")]) == 0
    assert "only built-in ones: E-DATA-30" in capsys.readouterr().out


def test_a_run_that_was_stopped_says_where_and_how_to_finish_it(trained_run, tmp_path, monkeypatch, capsys):
    """Without an adapter there is nothing to use; a bare chat takes the newest run that is finished."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_run.directory, "runs/done")
    shutil.copytree(trained_run.directory, "runs/stopped")
    shutil.rmtree("runs/stopped/adapter")
    for command in (
        ["chat", "runs/stopped", "--prompt", "hi"],
        ["merge", "runs/stopped", "-o", "out"],
        ["evaluate", "runs/stopped"],
    ):
        assert run(command) == 2
        said = capsys.readouterr().err
        assert "E-ADPT-105 runs/stopped stopped after step 6" in said
        assert "lorakeet train --resume -o runs/stopped" in said
    assert run(["chat", "--prompt", "hi", "--max-new-tokens", "2", "--json"]) == 0
    assert last_json(capsys)["run_dir"] == "runs/done"
