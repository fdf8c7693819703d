"""`make gpu` keeps what each part came to, whatever becomes of the others, and says when nothing was measured on CUDA."""

import json
import sys

import pytest
import torch

from benchmarks import gpu


def part(code, seconds=30, needs=None):
    return gpu.Part("a part", [sys.executable, "-c", code], seconds, gpu.last_json, needs)


@pytest.mark.parametrize(
    ("code", "seconds", "needs", "state", "said"),
    [
        ("print('words'); print('{\"tokens_per_second\": 3}')", 30, None, "done", ""),
        ("import sys; sys.exit('no memory')", 30, None, "failed", "no memory"),
        ("import time; time.sleep(60)", 1, None, "too slow", ""),
        ("", 30, "no_such_package", "left out", "no_such_package is not installed"),
        ("", 0, None, "left out", "the time was over"),
    ],
)
def test_a_part_that_fails_is_recorded(code, seconds, needs, state, said):
    found = gpu.run(part(code, needs=needs), seconds)
    assert found.state == state
    assert said in found.said
    assert found.figures == ({"tokens_per_second": 3} if state == "done" else {})


def test_a_dry_run_goes_through_and_says_that_nothing_was_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LORAKEET_COMPILE", "0")
    monkeypatch.setattr(gpu, "_tokenizer", lambda: None)
    output = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry-run", "--parts", "full size, LoRA", "--output", str(output)])
    assert gpu.main() == 0
    assert gpu.NOTHING in capsys.readouterr().out
    result = json.loads(output.read_text())
    assert result["measured_on_cuda"] is False
    (one,) = result["parts"]
    assert (one["name"], one["state"]) == ("full size, LoRA", "done")
    assert one["figures"]["tokens_per_second"] > 0
    assert "| full size, LoRA | done |" in output.with_suffix(".md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert "--dry-run" in capsys.readouterr().err
