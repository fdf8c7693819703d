"""Every generator goes on where it was."""

import random

import numpy
import torch

from lorakeet.training.rng import get_rng_states, set_rng_states


def test_all_generators_go_on_where_they_were():
    def draw():
        return random.random(), random.gauss(0, 1), numpy.random.randn(3).tolist(), torch.rand(3).tolist()

    draw()  # leaves half a pair of Gaussian numbers waiting, in Python and in NumPy
    states = get_rng_states()
    expected = [draw(), draw()]
    set_rng_states(states)
    assert [draw(), draw()] == expected
