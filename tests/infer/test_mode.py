"""Evaluation mode reaches every module and leaves no trace."""

import pytest
import torch
from torch import nn

from lorakeet.infer.mode import evaluating


def test_modes_come_back_even_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    seen = []

    def use():
        with evaluating(model):
            seen.append((any(module.training for module in model.modules()), torch.is_inference_mode_enabled()))
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert seen == [(False, True)]
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_a_module_that_stays_in_training_mode_is_noticed():
    class Stubborn(nn.Dropout):
        def train(self, mode=True):
            return super().train(True)

    with pytest.raises(AssertionError, match="training mode"), evaluating(nn.Sequential(Stubborn())):
        pass
