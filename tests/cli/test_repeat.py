"""A run repeats from its own configuration, and the example is a real run."""

import importlib.util
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lorakeet
from lorakeet.cli import main
from lorakeet.machine.hardware import choose_dtype
from tests.config.test_foreign_keys import NOTEBOOK_PEFT, NOTEBOOK_TRAINING

ROOT = Path(__file__).parents[2]
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "sums.jsonl"
    rows = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def assert_same(run, other):
    mine, theirs = load_file(run / ADAPTER), load_file(other / ADAPTER)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert any(tensor.any() for key, tensor in mine.items() if "lora_B" in key)


def test_a_runs_own_configuration_repeats_it(tmp_path, tiny_model_directory, data, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    settings = ["--max-steps", "6", "--batch-size", "4", "--r", "2", "--seed", "7", "--lr", "1e-2"]
    settings += ["--set", "peft_config.lora_dropout=0.1", "--set", "training_config.overwrite_output_dir=true"]
    settings += ["--set", "peft_config.target_modules=[q_proj, k_proj, v_proj, o_proj]"]
    assert main.run(["train", str(tiny_model_directory), str(data), "-o", "first", *settings]) == 0
    assert "Note: peft_config.target_modules: q_proj, k_proj and v_proj are one layer" in caplog.text
    assert main.run(["train", "--config", "first/config.yaml"]) == 0
    assert main.run(["train", "--config", "first/config.yaml", "-o", "second"]) == 0
    (repeated,) = Path("runs").iterdir()
    assert_same(Path("first"), repeated)
    assert_same(Path("first"), Path("second"))
    assert (repeated / "config.yaml").read_text() == Path("first/config.yaml").read_text()
    assert "target_modules:\n  - qkv_proj\n  - o_proj\n" in Path("first/config.yaml").read_text()
    decided = lorakeet.open_run("first").config
    assert (decided.data.template, decided.training_config.max_length) == ("phi3-mini", 128)
    assert decided.training_config.bf16 is (choose_dtype(None, "cpu") == torch.bfloat16)


def test_a_run_that_was_moved_resumes_where_it_is(tmp_path, tiny_model_directory, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", str(tiny_model_directory), str(data), "--name", "mine", "--max-steps", "2"]
    assert main.run([*arguments, "--set", "training_config.save_steps=1"]) == 0
    Path("runs/mine").rename("runs/moved")
    assert main.run(["train", "--resume", "-o", "runs/moved"]) == 0
    assert [path.name for path in Path("runs").iterdir()] == ["moved"]
    assert lorakeet.Run(Path("runs/moved")).config.training_config.output_dir == "runs/moved"


def test_the_log_has_both_dictionaries_and_verbose_shows_them(tmp_path, tiny_model_directory, data, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "canary-in-the-environment")
    arguments = ["train", str(tiny_model_directory), str(data), "--max-steps", "1", "--batch-size", "4", "--r", "2"]
    arguments += ["--set", "training_config.hub_token=canary-in-the-configuration"]
    for run, more in (("quiet", []), ("loud", ["-v"])):
        assert main.run([*arguments, "-o", run, *more]) == 0
        shown, logged = caplog.text, Path(run, "train.log").read_text()
        for text in ("training_config: {", "peft_config: {'r': 2,", "Process rank: 0 of 1, device: cpu"):
            assert text in logged
            assert (text in shown) == (run == "loud")
        assert re.search(
            r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - INFO - lorakeet\S* - Note: training_config\.hub_token ", logged, re.M
        )
        written = [path.read_text() for path in Path(run).rglob("*") if path.suffix in {".log", ".yaml", ".json", ".jsonl"}]
        assert "canary" not in shown + "".join(written)
        caplog.clear()


def test_the_example_runs_as_it_is(tmp_path, tiny_model_directory, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("finetune_phi3", ROOT / "examples" / "finetune_phi3.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(str(tiny_model_directory), str(data))
    run = lorakeet.Run(Path("checkpoint_dir"))
    assert run.summary["steps"] == 7  # 28 rows in fours; two are held out
    assert run.config.training_config.eval_strategy == "no"
    assert run.adapter_directory.joinpath("adapter_config.json").is_file()


def test_the_notebooks_dictionaries_train_all_four_layers(tmp_path, tiny_model_directory, data, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        run = lorakeet.train(str(tiny_model_directory), str(data), training_config=NOTEBOOK_TRAINING, peft_config=NOTEBOOK_PEFT)
    assert run.directory == Path("phi-3-mini-LoRA")
    assert "gate_proj and up_proj are one layer of this model, gate_up_proj" in caplog.text
    trained = {key.split(".")[-3] for key in load_file(run.directory / ADAPTER)}
    assert trained == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
