"""Sampling draws from the distribution it promises, and greedy choice is the most likely token."""

import math

import pytest
import torch

from lorakeet.errors import ConfigError, ModelError
from lorakeet.infer.sampling import GREEDY, Sampling, candidates, choose, penalize_repetition


def draw(logits, sampling, n=4000):
    generator = sampling.generator(0)
    return [choose(logits, sampling, [generator])[0] for _ in range(n)]


def test_greedy_takes_the_most_likely():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert choose(logits, GREEDY, []) == [1, 0]
    assert Sampling(temperature=0.0, top_k=2, seed=3).is_greedy


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_softmax_at_the_temperature(temperature):
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    drawn = draw(logits, Sampling(temperature, seed=1))
    expected = (logits[0] / temperature).softmax(-1)
    found = torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)
    assert torch.allclose(found, expected, atol=4 * math.sqrt(0.25 / len(drawn)))


def test_top_k_and_top_p_leave_out_the_rest():
    logits = torch.tensor([[0.5, 0.2, 0.2 + 1e-4, 0.1]]).log()
    assert set(draw(logits, Sampling(1.0, top_k=2, seed=0), 500)) == {0, 2}
    assert set(draw(logits, Sampling(1.0, top_p=0.49, seed=0), 500)) == {0}
    assert set(draw(logits, Sampling(1.0, top_p=0.6, seed=0), 500)) == {0, 2}
    assert set(draw(logits, Sampling(1.0, top_p=1e-9, seed=0), 50)) == {0}


@pytest.mark.parametrize("tiny", [1e-6, 1e-30, 1e-45, 1e-300])
@pytest.mark.parametrize("size", [1.0, 1e30])
def test_the_least_temperature_and_top_p_take_the_most_likely(tiny, size):
    logits = torch.tensor([[0.5, 3.0, 2.999, -1.0], [-7.0, -8.0, float("-inf"), -9.0]]) * size
    for sampling in (Sampling(tiny, seed=0), Sampling(1.0, tiny, seed=0), Sampling(tiny, tiny, min_p=1.0, seed=0)):
        assert choose(logits, sampling, [sampling.generator(0), sampling.generator(1)]) == [1, 0]
    penalized = penalize_repetition(torch.tensor([0.5, -3.0, 2.0]) * size, [0, 1], tiny)
    assert penalized.isfinite().all()


@pytest.mark.parametrize(("top_p", "top_k"), [(0.3, 0), (0.7, 0), (0.9, 5), (1.0, 3), (1.0, 0)])
def test_candidates_match_transformers(top_p, top_k):
    from transformers.generation import logits_process

    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 2
    ours, ids = candidates(logits, Sampling(1.3, top_p, top_k))
    theirs = logits_process.TemperatureLogitsWarper(1.3)(None, logits)
    if top_k:
        theirs = logits_process.TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = logits_process.TopPLogitsWarper(top_p)(None, theirs)
    assert torch.allclose(torch.zeros_like(logits).scatter(1, ids, ours), theirs.softmax(-1), atol=1e-6)


def test_a_sequence_draws_the_same_in_any_company():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(1.0, seed=5)
    alone = choose(logits, sampling, [sampling.generator(1)])
    beside = choose(logits.repeat(3, 1), sampling, [sampling.generator(i) for i in range(3)])
    assert beside[1:2] == alone


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, seed=0)])
def test_refuses_logits_that_are_not_finite(bad, sampling):
    logits = torch.tensor([[0.0, 1.0], [0.0, bad]])
    with pytest.raises(ModelError, match="E-MODEL-120"):
        choose(logits, sampling, [sampling.generator(0), sampling.generator(1)])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_rejects_values_out_of_range(values, key):
    with pytest.raises(ConfigError, match=f"{key} is .*; expected"):
        Sampling(**values)
