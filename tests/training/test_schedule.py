"""Learning rates, step by step, against transformers' schedules."""

import pytest
import torch
from transformers import get_scheduler

from lorakeet.config import TrainingConfig
from lorakeet.training.schedule import learning_rate


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize(("warmup_steps", "warmup_ratio"), [(0, 0.0), (3, 0.0), (0, 0.25)])
def test_learning_rates_match_transformers(name, warmup_steps, warmup_ratio):
    config = TrainingConfig(
        lr_scheduler_type=name, learning_rate=0.01, warmup_steps=warmup_steps, warmup_ratio=warmup_ratio
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup_steps or 5, num_training_steps=20)
    if not (warmup_steps or warmup_ratio):
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=20)
    for step in range(20):
        assert learning_rate(step, 20, config) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12), step
        optimizer.step()
        scheduler.step()


def test_a_golden_list():
    config = TrainingConfig(lr_scheduler_type="linear", learning_rate=1.0, warmup_steps=2)
    assert [learning_rate(step, 6, config) for step in range(6)] == [0, 0.5, 1.0, 0.75, 0.5, 0.25]
