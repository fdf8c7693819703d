"""Learning rates, step by step, against transformers' schedules."""

import typing

import pytest
import torch
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

from lorakeet.config import TrainingConfig
from lorakeet.config.schedules import SCHEDULES, ScheduleName
from lorakeet.errors import ConfigError
from lorakeet.training.schedule import check_schedule, learning_rate

OPTIONS = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.5}),
    ("cosine_with_restarts", {}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {}),
    ("polynomial", {"lr_end": 1e-3, "power": 2.0}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 7}),
    ("cosine_with_min_lr", {"min_lr": 2e-3}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_with_min_lr", {"min_lr": 0.0, "num_cycles": 2.0}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", {"min_lr": 1e-3, "warmup_lr_rate": 0.2}),
    ("warmup_stable_decay", {"num_decay_steps": 8}),
    ("warmup_stable_decay", {"num_decay_steps": 8, "decay_type": "linear", "min_lr_ratio": 0.1}),
    ("warmup_stable_decay", {"num_decay_steps": 8, "decay_type": "1-sqrt", "warmup_type": "1-sqrt"}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "num_stable_steps": 4, "warmup_type": "cosine", "num_cycles": 1.5}),
    ("warmup_stable_decay", {"num_decay_steps": 0, "min_lr_ratio": 0.5}),
]


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps:UserWarning")
@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("warmup", [0, 1, 3, 12])
def test_whole_runs_match_transformers(name, options, warmup):
    config = TrainingConfig(
        lr_scheduler_type=name, lr_scheduler_kwargs=options, learning_rate=0.01, warmup_steps=warmup, warmup_ratio=0
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = get_scheduler(name, optimizer, warmup, 20, options)
    for step in range(20):
        assert learning_rate(step, 20, config) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=1e-18), step
        optimizer.step()
        scheduler.step()


def test_every_schedule_that_is_a_function_of_the_step_is_here():
    assert {name for name, _ in OPTIONS} == set(SCHEDULES) == set(typing.get_args(ScheduleName))
    assert {kind.value for kind in SchedulerType} - set(SCHEDULES) == {"reduce_lr_on_plateau", "greedy"}


def test_a_ratio_of_warmup_is_rounded_up_to_steps():
    config = TrainingConfig(lr_scheduler_type="constant_with_warmup", learning_rate=1.0, warmup_ratio=0.21)
    assert [learning_rate(step, 10, config) for step in range(5)] == [0, 1 / 3, 2 / 3, 1, 1]


@pytest.mark.parametrize(
    ("name", "options", "golden"),
    [
        ("linear", {}, [0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", {}, [0, 0.5, 1.0, 0.961939766, 0.853553391, 0.691341716, 0.5, 0.308658284, 0.146446609, 0.038060234]),
        (
            "cosine_with_min_lr",
            {"min_lr_rate": 0.1},
            [0, 0.5, 1.0, 0.96574579, 0.868198052, 0.722207544, 0.55, 0.377792456, 0.231801948, 0.13425421],
        ),
        (
            "warmup_stable_decay",
            {"num_decay_steps": 4, "decay_type": "linear", "min_lr_ratio": 0.2},
            [0.2, 0.6, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4],
        ),
    ],
)
def test_golden_lists(name, options, golden):
    """Regenerate with transformers.get_scheduler(name, SGD(lr=1.0), 2, 10, options)."""
    config = TrainingConfig(lr_scheduler_type=name, lr_scheduler_kwargs=options, learning_rate=1.0, warmup_steps=2)
    assert [learning_rate(step, 10, config) for step in range(10)] == pytest.approx(golden, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosine", {"num_cycle": 1}, r'E-CFG-31 .*lr_scheduler_kwargs unknown key "num_cycle"\. .*num_cycles'),
        ("linear", {"min_lr": 1e-5}, r'E-CFG-31 .*unknown key "min_lr"'),
        ("cosine_with_restarts", {"num_cycles": 0.5}, r"E-CFG-107 .*num_cycles is 0\.5; allowed: a whole number from 1"),
        ("cosine_with_min_lr", {}, r"E-CFG-143 .*has neither min_lr nor min_lr_rate"),
        ("cosine_with_min_lr", {"min_lr": 1e-5, "min_lr_rate": 0.1}, r"E-CFG-143 .*has both"),
        ("cosine_with_min_lr", {"min_lr": 0.01}, r"E-CFG-144 .*min_lr is 0\.01, learning_rate, .* is 0\.01"),
        ("polynomial", {"lr_end": 1.0}, r"E-CFG-144 .*lr_end is 1"),
        ("warmup_stable_decay", {}, r"E-CFG-107 .*num_decay_steps is missing"),
        ("warmup_stable_decay", {"num_decay_steps": 3, "decay_type": "exp"}, r"E-CFG-107 .*'exp'; allowed: linear, cosine"),
        ("reduce_lr_on_plateau", None, r"E-CFG-107 .*lr_scheduler_type is 'reduce_lr_on_plateau'; allowed: linear"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(lr_scheduler_type=name, lr_scheduler_kwargs=options, learning_rate=0.01)


@pytest.mark.parametrize("options", [{"num_decay_steps": 9}, {"num_decay_steps": 3, "num_stable_steps": 6}])
def test_phases_longer_than_the_run_are_refused(options):
    config = TrainingConfig(lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=options, warmup_steps=2)
    with pytest.raises(ConfigError, match=r"E-CFG-145 .*2 \+ \d \+ \d steps .* more than the run's 10"):
        check_schedule(config, 10)
    check_schedule(config, 11)
