"""A run that is told to stop saves, says how to go on, and ends as if it had never stopped."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from lorakeet.cli import main
from lorakeet.training import loop as trainer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_resuming_ends_bit_equal(number, tmp_path, tiny_model_directory, monkeypatch, capsys):
    data = tmp_path / "sums.jsonl"
    rows = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["--max-steps", "8", "--batch-size", "4", "--r", "2", "--set", "peft_config.lora_dropout=0.1"]
    settings += ["--set", "training_config.logging_steps=1"]

    def train(run, *more):
        return main.run(["train", str(tiny_model_directory), str(data), "-o", str(run), *settings, *more])

    assert train(tmp_path / "straight") == 0
    step, count = trainer.train_step, 0

    def interrupted_step(*args, **options):
        nonlocal count
        count += 1
        if count == 3:
            os.kill(os.getpid(), number)
        return step(*args, **options)

    run = tmp_path / "stopped"
    monkeypatch.setattr(trainer, "train_step", interrupted_step)
    assert train(run) == 130
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]  # a step is whole or dropped
    assert not (run / "adapter").exists()
    assert train(run) == 2  # not without --resume
    assert "E-CFG-48" in capsys.readouterr().err
    assert main.run(["train", "--resume", "-o", str(run)]) == 0
    for name in ("adapter/adapter_model.safetensors", "checkpoints/step-000008/moments.safetensors"):
        resumed, straight = load_file(run / name), load_file(tmp_path / "straight" / name)
        assert resumed.keys() == straight.keys()
        assert all(torch.equal(resumed[key], straight[key]) for key in straight)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, 9))
