"""An optimizer's state goes out and comes back whole, or not at all."""

import copy

import pytest
import torch

from lorakeet.config import TrainingConfig
from lorakeet.errors import CheckpointError
from lorakeet.training.loop import Trainer
from lorakeet.training.reporting import Reporters


@pytest.fixture
def trained(make_model, examples):
    trainer = Trainer(make_model(), TrainingConfig(max_steps=2, eval_strategy="no", warmup_steps=1), examples)
    trainer.run(Reporters())
    return trainer


def broken(trainer, change):
    state = copy.deepcopy(trainer.state())
    change(state)
    return state


def drop(field, key):
    return lambda state: getattr(state, field).pop(key(getattr(state, field)) if callable(key) else key)


def first(tensors):
    return next(iter(tensors))


def last_parameter_vanishes(state):
    name = list(state.moments)[-1].partition("/")[0]
    for key in [key for key in state.moments if key.startswith(f"{name}/")]:
        del state.moments[key]
    state.optimizer["num_tensors"] = len(state.moments)


def rename(state):
    key = first(state.moments)
    state.moments["somewhere.else/exp_avg"] = state.moments.pop(key)


def reshape(state):
    key = first(state.params)
    state.params[key] = state.params[key][:1]


def regroup(state):
    state.optimizer["groups"] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("params", first), r"E-CKPT-66 .*differ.* in 1: model\.layers\.0"),
        (reshape, r"E-CKPT-65 .*model\.layers\.0\S* has shape \[1, \d+\], expected \[\d+, \d+\]"),
        (drop("moments", first), r"E-CKPT-60 .*has 47 of 48 tensors: cannot resume exactly"),
        (rename, r"E-CKPT-60 .*somewhere\.else/exp_avg, which belongs to no parameter"),
        (last_parameter_vanishes, r"E-CKPT-60 .*has nothing for 1 parameters, for example model\.layers"),
        (regroup, r"E-CKPT-60 .*other parameter groups"),
    ],
)
def test_a_missing_or_foreign_part_is_an_error(trained, make_model, examples, change, message):
    other = Trainer(make_model(), trained.config, examples)
    before = {name: param.detach().clone() for name, param in other.named_params.items()}
    with pytest.raises(CheckpointError, match=message):
        other.load_state(broken(trained, change))
    assert other.step == 0
    if "params" in message:
        assert all(torch.equal(param, before[name]) for name, param in other.named_params.items())


def test_a_state_from_before_the_first_step_is_whole(trained, make_model, examples):
    fresh = Trainer(make_model(), trained.config, examples)
    other = Trainer(make_model(), trained.config, examples)
    other.load_state(copy.deepcopy(fresh.state()))
    assert other.step == 0
    assert not other.state().moments
