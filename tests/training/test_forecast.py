"""What a prediction may not touch, what it is made of, and that a run keeps it beside what it measured."""

import copy
import json

import pytest
import torch

from lorakeet.config import TrainingConfig
from lorakeet.data.conversation import Example
from lorakeet.machine.peak_memory import peak_during, peak_memory_bytes
from lorakeet.training import forecast as forecasts
from lorakeet.training.forecast import _fit, _Measured, _peak_bytes, _seconds, _Size, _size, compare_forecast, forecast_run
from lorakeet.training.forecast import forecast as predict
from lorakeet.training.loop import Trainer
from lorakeet.training.reporting import Reporters


def settings(**values):
    return TrainingConfig(**{"learning_rate": 1e-2, "eval_strategy": "epoch", **values})


def test_a_prediction_changes_nothing_that_is_learned(make_model, examples):
    adapters = []
    for predicts in (False, True):
        torch.manual_seed(7)
        model = make_model(lora_dropout=0.1)
        trainer = Trainer(model, settings(num_train_epochs=2), examples, examples[:4])
        before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        if predicts:
            predict(trainer)
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            assert torch.equal(torch.get_rng_state(), state)
            assert not trainer.optimizer.state
            assert all(param.grad is None for param in model.parameters())
        trainer.run(Reporters())
        adapters.append(trainer.named_params)
    assert all(torch.equal(param, adapters[1][name]) for name, param in adapters[0].items())


@pytest.mark.parametrize("values", [{}, {"packing": True, "max_length": 40}, {"gradient_accumulation_steps": 2}])
def test_every_kind_of_run_is_predicted(make_model, examples, values):
    predicted = predict(Trainer(make_model(), settings(**values), examples, examples[:4]))
    tokens = sum(len(row.input_ids) for row in examples)
    assert predicted.tokens_per_second == pytest.approx(3 * tokens / predicted.train_seconds)
    assert 0 < predicted.eval_seconds < predicted.train_seconds
    assert predicted.seconds == predicted.train_seconds + predicted.eval_seconds
    assert predicted.peak_memory_bytes >= 0.9 * peak_memory_bytes()
    assert predict(Trainer(make_model(), settings(eval_strategy="no"), examples[:1])).eval_seconds == 0


@pytest.mark.parametrize(
    ("values", "passes", "evaluations"),
    [
        ({"num_train_epochs": 2}, 6, 1 + 2),  # 24 rows in eights
        ({"num_train_epochs": 0.34}, 2, 1 + 1),
        ({"max_steps": 2}, 2, 1 + 1),
        ({"max_steps": 10, "eval_strategy": "steps", "eval_steps": 4}, 10, 1 + 3),
        ({"max_steps": 6, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 12, 1 + 2),
        ({"max_steps": 10, "eval_strategy": "no"}, 10, 0),
    ],
)
def test_the_run_that_was_asked_for_is_predicted(make_model, examples, monkeypatch, values, passes, evaluations):
    """A second a pass: then the training takes as many seconds as it has passes."""
    monkeypatch.setattr(forecasts, "_seconds", lambda size, small, large: 1.0)
    rows = [examples[0]] * len(examples)
    predicted = predict(Trainer(make_model(), settings(**values), rows, rows[:12]))
    assert predicted.steps == passes // values.get("gradient_accumulation_steps", 1)
    assert predicted.train_seconds == pytest.approx(passes)
    tokens_of_a_pass = values.get("per_device_train_batch_size", 8)
    assert predicted.eval_seconds == pytest.approx(evaluations * forecasts.EVALUATED_SHARE * 12 / tokens_of_a_pass)


def test_shared_beginnings_count_once_and_long_documents_more_than_short_ones(make_model, examples):
    model = make_model()
    one, twice = _size(model, examples[2:3]), _size(model, [examples[2], examples[2]])
    assert one.tokens == twice.tokens == len(examples[2].input_ids)
    first, second = examples[1:3]
    whole = Example(first.input_ids + second.input_ids, ((2, 9),))
    parts = [Example(first.input_ids, ((2, 9),)), Example(second.input_ids, ())]
    whole_size, parts_size = _size(model, [whole]), _size(model, parts)
    assert whole_size.tokens == parts_size.tokens
    assert whole_size.work > parts_size.work


@pytest.mark.parametrize(("free", "is_said"), [(0, True), (10**15, False), (None, False)])
def test_more_than_is_free_is_said_before_the_run(make_model, examples, monkeypatch, caplog, free, is_said):
    monkeypatch.setattr(forecasts, "free_bytes", lambda: free)
    monkeypatch.setattr(forecasts, "product_bytes_to_come", lambda *args, **options: 10**12)
    predict(Trainer(make_model(), settings(), examples))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * is_said
    assert not is_said or "halve per_device_train_batch_size" in caplog.text


def measured(tokens, work, seconds, peak):
    return _Measured(_Size(tokens, work), seconds, peak)


def test_lines_go_through_both_calibration_steps_and_on():
    small, large = measured(100, 1e6, 1.5, 1000), measured(300, 3e6, 2.5, 1600)
    assert _seconds(_Size(500, 5e6), small, large) == pytest.approx(3.5)
    assert _seconds(small.size, small, large) == pytest.approx(1.5)
    assert _peak_bytes(_Size(500, 5e6), small, large) == pytest.approx(2200)
    assert _peak_bytes(large.size, small, large) == pytest.approx(1600)


def test_steps_that_tell_no_rise_give_a_ratio_and_the_higher_peak():
    same = measured(100, 1e6, 1.0, 1000)
    assert _seconds(_Size(200, 2e6), same, same) == pytest.approx(2.0)
    slower_when_small = measured(50, 5e5, 1.5, 1200)
    assert _seconds(_Size(200, 2e6), slower_when_small, same) == pytest.approx(2e6 * 2.5 / 1.5e6)
    assert _peak_bytes(_Size(200, 2e6), slower_when_small, same) == 1200
    assert _fit((1.0, 1.0), (2.0, 3.0)) == (3.0, 0.0)


def test_peak_memory_is_that_of_the_work_and_never_falls():
    size = 64 * 2**20
    before = peak_memory_bytes()
    rise = peak_during(lambda: torch.ones(size // 4)) - peak_during(lambda: None)
    assert rise > 0.8 * size or peak_memory_bytes() >= before + 0.8 * size or before > peak_memory_bytes() - size
    assert peak_memory_bytes() >= before


def test_a_run_keeps_predicted_beside_measured(make_model, examples, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(forecasts, "LEAST_STEPS", 6)
    trainer = Trainer(make_model(), settings(num_train_epochs=2), examples)
    with caplog.at_level("INFO"):
        predicted = forecast_run(tmp_path, trainer)
        trainer.run(Reporters())
        compare_forecast(tmp_path, trainer, predicted)
    found = json.loads((tmp_path / "prediction.json").read_text())
    assert found["predicted"]["steps"] == trainer.total_steps
    assert found["measured"]["train_seconds"] == pytest.approx(trainer.train_seconds)
    assert found["measured"]["peak_memory_bytes"] == peak_memory_bytes()
    assert found["predicted"]["seconds"] == found["predicted"]["train_seconds"] + found["predicted"]["eval_seconds"]
    assert caplog.messages[0].startswith("Predicted: ")
    assert "Measured: " in caplog.messages[-1]


def test_a_resumed_run_keeps_the_prediction_it_began_with_and_a_short_run_has_none(make_model, examples, tmp_path):
    trainer = Trainer(make_model(), settings(), examples)
    assert trainer.total_steps < forecasts.LEAST_STEPS
    compare_forecast(tmp_path, trainer, forecast_run(tmp_path, trainer))
    assert list(tmp_path.iterdir()) == []
    predicted = predict(trainer)
    (tmp_path / "prediction.json").write_text(json.dumps({"predicted": predicted.to_dict()}))
    trainer.step = 4
    assert forecast_run(tmp_path, trainer) == predicted
    of_an_older_version = {"training_seconds": 60.0, "peak_memory_bytes": 1}
    (tmp_path / "prediction.json").write_text(json.dumps({"predicted": of_an_older_version}))
    assert forecast_run(tmp_path, trainer) is None
