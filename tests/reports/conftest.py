"""A browser, and run directories made of what runs write."""

import json
import math
import random

import pytest

from tests.browser import opened, require_chromium

CONFIG = """\
model: demo
data:
  train: [rows.jsonl]
  eval: null
training_config:
  learning_rate: 0.0002
  max_steps: 200
  seed: 42
peft_config:
  r: 8
  target_modules: all-linear
"""


@pytest.fixture(scope="module")
def browser():
    require_chromium()
    with opened() as browser:
        yield browser


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(directory, *, num_steps=200, num_rows=60, num_epochs=3, text="4", lr=2e-4):
    """Write a run directory as training leaves it, by what the files are documented to hold."""
    rng = random.Random(0)
    directory.mkdir()
    (directory / "config.yaml").write_text(CONFIG.replace("0.0002", str(lr)))
    steps = []
    for step in range(num_steps + 1):
        epoch = round(num_epochs * step / num_steps, 4)
        if step % max(1, num_steps // 4) == 0:
            held_out = {"eval_loss": 0.5 + 2 * math.exp(-step / 40), "num_supervised_tokens": 90}
            steps.append({"step": step, "epoch": epoch, **held_out})
        if step:
            numbers = {"loss": 0.5 + 2 * math.exp(-step / 40) + rng.gauss(0, 0.1), "grad_norm": rng.uniform(0.5, 2)}
            numbers |= {"learning_rate": lr * (1 - step / num_steps), "num_tokens": step * 900, "elapsed_s": step * 0.9}
            numbers |= {"tokens_per_second": rng.gauss(1000, 50), "peak_memory_bytes": 2_500_000_000 + step * 1000}
            steps.append({"step": step, "epoch": epoch, **numbers})
    write_lines(directory / "metrics.jsonl", steps)
    answers = [(0, "What is 2 and 2?", "I do not know."), (num_steps, "What is 2 and 2?", text)]
    write_lines(
        directory / "samples.jsonl",
        [
            {"step": step, "place": "rows.jsonl:7", "prompt": asked, "reference": "4", "text": said}
            for step, asked, said in answers
        ],
    )
    write_lines(
        directory / "rows.jsonl",
        [
            {"step": 1, "epoch": epoch, "place": f"rows.jsonl:{row + 1}", "loss": _row_loss(row, epoch), "tokens": 5 + row % 9}
            for epoch in range(1, num_epochs + 1)
            for row in range(num_rows)
        ],
    )
    predicted = {"train_seconds": 61.0, "eval_seconds": 2.0, "peak_memory_bytes": 2_400_000_000}
    measured = {"train_seconds": 60.0, "peak_memory_bytes": 2_500_200_000}
    (directory / "prediction.json").write_text(json.dumps({"predicted": predicted, "measured": measured}))
    return directory


def _row_loss(row, epoch):
    """Let every row fall but the twelfth, which rises."""
    return 1 + 0.5 * epoch if row == 11 else (1 + row / 100) / epoch


@pytest.fixture
def run_directory(tmp_path):
    return write_run(tmp_path / "run")
