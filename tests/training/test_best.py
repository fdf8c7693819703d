"""The best evaluation and early stopping: as transformers decides, and the same after a kill."""

import dataclasses
import json
import types

import pytest
from safetensors.torch import load_file

from lorakeet import api
from lorakeet.cli import main
from lorakeet.config import TrainingConfig
from lorakeet.errors import ConfigError
from lorakeet.lora.adapter import adapter_extra
from lorakeet.rundir.checkpoint import checkpoint_path, checkpoints
from lorakeet.rundir.rows import EvaluationRow
from lorakeet.training import loop as trainer
from lorakeet.training.best_evaluation import BestEvaluation
from tests.cli import conftest as cli

own_cache, tiny_model_directory = cli.own_cache, cli.tiny_model_directory

LOSSES = [3.0, 2.5, 2.6, 2.45, 2.44, 2.43, 2.5, 2.2, 2.3, 2.3, 2.3]


def decide(losses, **settings):
    best = BestEvaluation.for_config(TrainingConfig(**settings))
    for step, loss in enumerate(losses, 1):
        best.add(EvaluationRow(step=step, epoch=0.0, eval_loss=loss, num_supervised_tokens=1))
        if best.is_patience_over:
            return best, step
    return best, None


def decide_as_transformers_does(losses, patience, threshold, greater):
    """Drive the real callback through the real order: it compares first, then the trainer takes the best."""
    from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

    callback = EarlyStoppingCallback(patience, threshold)
    arguments = types.SimpleNamespace(metric_for_best_model="eval_loss", greater_is_better=greater)
    state, control = TrainerState(), TrainerControl()
    for step, loss in enumerate(losses, 1):
        callback.on_evaluate(arguments, state, control, {"eval_loss": loss})
        if state.best_metric is None or (loss > state.best_metric if greater else loss < state.best_metric):
            state.best_metric, state.best_global_step = loss, step
        if control.should_training_stop:
            return state, step
    return state, None


@pytest.mark.parametrize("patience", [1, 2, 3, 5])
@pytest.mark.parametrize("threshold", [0.0, 0.04, 0.2])
@pytest.mark.parametrize("greater", [False, True])
def test_matches_transformers(patience, threshold, greater):
    losses = [5 - loss for loss in LOSSES] if greater else LOSSES
    state, stopped = decide_as_transformers_does(losses, patience, threshold, greater)
    best, step = decide(losses, early_stopping_patience=patience, early_stopping_threshold=threshold, greater_is_better=greater)
    assert (best.value, best.step, step) == (state.best_metric, state.best_global_step, stopped)


def test_what_it_knows_roundtrips_through_json():
    best, _ = decide(LOSSES[:6], early_stopping_patience=5, early_stopping_threshold=0.2)
    assert best.num_misses > 1
    again = BestEvaluation.for_config(TrainingConfig(early_stopping_patience=5, early_stopping_threshold=0.2))
    again.load_state(json.loads(json.dumps(best.state())))
    assert again == best


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"eval_strategy": "no", "load_best_model_at_end": True}, "E-CFG-151 training_config.load_best_model_at_end"),
        ({"eval_strategy": "no", "early_stopping_patience": 1}, "E-CFG-151 training_config.early_stopping_patience"),
        ({"eval_strategy": "no", "sample_prompts": ["hi"]}, "E-CFG-151 training_config.sample_prompts"),
        ({"early_stopping_threshold": 0.1}, "E-CFG-152 training_config.early_stopping_threshold"),
        ({"early_stopping_patience": 0}, "early_stopping_patience"),
        ({"metric_for_best_model": "eval_bleu"}, "metric_for_best_model"),
        ({"sample_prompts": -1}, "sample_prompts"),
    ],
)
def test_choices_that_cannot_be_made_are_refused(settings, code):
    with pytest.raises(ConfigError, match=code):
        TrainingConfig(**settings)


def test_without_held_out_rows_it_is_said_before_training(tiny_model_directory, tmp_path):
    with pytest.raises(ConfigError, match=r"E-CFG-153 training_config\.load_best_model_at_end needs held-out rows"):
        api.train(
            str(tiny_model_directory),
            rows(tmp_path),
            data_config={"eval_fraction": 0},
            training_config={"load_best_model_at_end": True, "output_dir": str(tmp_path / "run")},
        )
    assert not (tmp_path / "run").exists()


def rows(folder):
    data = folder / "rows.jsonl"
    answers = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in answers))
    return str(data)


SETTINGS = {
    "max_steps": 12,
    "per_device_train_batch_size": 4,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "logging_steps": 5,
    "save_steps": 4,
    "load_best_model_at_end": True,
    "early_stopping_patience": 4,
    "learning_rate": 1e-3,
    "bf16": False,
}


class Killed(BaseException):
    """Stands for a kill: nothing below handles it."""


def train(model, data, directory, monkeypatch, killed_after=None, **options):
    """Train with held-out losses of our choice, and perhaps die in the evaluation behind a step."""
    told = {0: 2.0, 1: 5.0, 2: 4.0, 3: 3.0, 4: 3.5, 5: 3.2, 6: 3.0, 7: 3.1, 8: 1.0}
    real = trainer.Trainer._held_out_loss

    def chosen(self):
        found = dataclasses.replace(real(self), loss=told[self.step])
        if self.step == killed_after:
            raise Killed
        return found

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_held_out_loss", chosen)
        settings = {**SETTINGS, "output_dir": str(directory)}
        return api.train(
            str(model),
            data,
            training_config=settings,
            peft_config={"r": 2, "lora_dropout": 0.1},
            data_config={"eval_fraction": 0.2},
            **options,
        )


@pytest.mark.parametrize("killed_after", [5, 7])
def test_a_killed_run_stops_at_the_same_step_with_the_same_best(
    killed_after, tiny_model_directory, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    data = rows(tmp_path)
    straight = train(tiny_model_directory, data, tmp_path / "straight", monkeypatch)
    assert "Stopped early after step 7" in caplog.text
    assert (straight.summary["steps"], straight.summary["adapter_step"]) == (7, 3)
    assert straight.summary["eval_loss_after"] == 3.0
    # The two newest and the best; steps 1 and 2 were the best once, and are gone.
    names = [path.name for path in checkpoints(straight.directory)]
    assert names == ["step-000007", "step-000004", "step-000003"]
    adapter = load_file(straight.adapter_directory / "adapter_model.safetensors")
    best = load_file(checkpoint_path(straight.directory, 3) / "params.safetensors")
    assert adapter.keys() == {f"base_model.model.{name}.weight" for name in best}
    assert all(adapter[f"base_model.model.{name}.weight"].equal(best[name]) for name in best)
    assert adapter_extra(straight.adapter_directory)["step"] == 3

    stopped = tmp_path / "stopped"
    with pytest.raises(Killed):
        train(tiny_model_directory, data, stopped, monkeypatch, killed_after=killed_after)
    resumed = train(tiny_model_directory, data, stopped, monkeypatch, resume=True)
    assert [path.name for path in checkpoints(stopped)] == names
    assert (resumed.summary["steps"], resumed.summary["adapter_step"]) == (7, 3)
    again = load_file(resumed.adapter_directory / "adapter_model.safetensors")
    assert all(again[name].equal(adapter[name]) for name in adapter)
    evaluations = [
        [(row["step"], row["eval_loss"]) for row in run.metrics if "eval_loss" in row] for run in (straight, resumed)
    ]
    assert evaluations[0] == evaluations[1]
    # A run that has stopped is done: resuming it trains no further.
    train(tiny_model_directory, data, stopped, monkeypatch, resume=True)
    assert [path.name for path in checkpoints(stopped)] == names


def test_a_best_checkpoint_that_is_damaged_is_named(tiny_model_directory, tmp_path, monkeypatch):
    data, directory = rows(tmp_path), tmp_path / "run"
    train(tiny_model_directory, data, directory, monkeypatch)
    (checkpoint_path(directory, 3) / "params.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"E-CKPT-55 .*step-000003.*params\.safetensors"):
        train(tiny_model_directory, data, directory, monkeypatch, resume=True)
    last_instead = ["--set", "training_config.load_best_model_at_end=false"]
    assert main.run(["train", "--resume", "-o", str(directory), *last_instead]) == 0
    assert api.open_run(directory).summary["adapter_step"] == 7
