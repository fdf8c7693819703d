"""What `lorakeet demo` says: which model it trains, for how long, and which of the answers it shows are still wrong."""

from pathlib import Path

import pytest

from lorakeet import api
from lorakeet.cli import main
from lorakeet.demo_task.outcome import DEMO_METRIC, DemoAnswers, DemoOutcome
from lorakeet.evaluation.generation import Answer
from lorakeet.proofs.proof import ProofResult
from lorakeet.proofs.verify import Verification
from lorakeet.rundir.record import RunRecord

RUN = RunRecord(Path(__file__).parents[1] / "stored" / "run")


def answers(*texts):
    return DemoAnswers(
        [
            Answer(f"demo:{i}", f"request {i}", "{}", text, "stop", scores={DEMO_METRIC: float(text == "{}")})
            for i, text in enumerate(texts)
        ]
    )


def test_each_answer_that_is_shown_is_called_right_or_wrong(monkeypatch, capsys):
    proofs = Verification({}, [ProofResult("packed = separate", "", 0.0, 0.0, "", True, "", 1.0)], quick=True, seconds=12.0)
    outcome = DemoOutcome(RUN, answers("Hello!", "{}", "{}", "Hi!"), answers("{}", "{}", "[]", "{1}"), proofs)
    monkeypatch.setattr(api, "demo", lambda output, say: outcome)
    assert main.run(["demo"]) == 0
    out = capsys.readouterr().out
    shown = [block for block in out.split("\n\n") if block.startswith("request")]
    verdicts = {block.splitlines()[0].split()[-1]: block.splitlines()[-1] for block in shown}
    assert verdicts == {
        "0": "which is  right now",
        "1": "which is  right, as before",
        "2": "which is  wrong now",
        "3": "which is  still wrong",
    }
    assert "Score on held-out requests: 50.0% before, 50.0% after training." in out
    assert "1 of 1 quick proofs passed in 12 s. All of them: " in out


def test_the_model_and_the_task_are_said_before_anything_is_trained(monkeypatch):
    said = []

    def stop(config):
        assert len(said) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        api.demo(say=said.append)
    assert "SmolLM2-135M-Instruct in the layout of Phi-3" in said[0]
    assert "Task: turn a spoken request into one JSON tool call." in said[0]
