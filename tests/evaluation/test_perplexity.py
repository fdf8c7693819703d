"""The held-out loss: the sum over supervised tokens by their number, however the rows are batched."""

import math

import pytest
import torch
import torch.nn.functional as F

from lorakeet.data.encode import encode_many
from lorakeet.evaluation.perplexity import evaluate_loss


@pytest.fixture
def tuned(tuned):
    """The decoder alone."""
    return tuned.model


@pytest.fixture
def examples(conversations, tokenizer, template):
    return encode_many(conversations, tokenizer, template)


def plain_loss(model, examples):
    """Compute the loss one row and one token at a time, from all logits."""
    losses = []
    for example in examples:
        ids = torch.tensor(example.input_ids)
        with torch.inference_mode():
            hidden = model(ids, torch.arange(len(ids)), torch.tensor([0, len(ids)], dtype=torch.int32))
            logits = F.linear(hidden, model.lm_head.weight)
        for start, end in example.spans:
            losses += [F.cross_entropy(logits[i - 1], ids[i]).item() for i in range(start, end)]
    return losses


def test_matches_the_plain_sum_over_tokens(tuned, examples):
    losses = plain_loss(tuned.eval(), examples)
    found = evaluate_loss(tuned, examples)
    assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert (found.num_supervised_tokens, found.num_conversations) == (len(losses), len(examples))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 100])
def test_does_not_depend_on_the_batch_size(tuned, examples, batch_size):
    alone = evaluate_loss(tuned, examples, batch_size=1)
    found = evaluate_loss(tuned, examples, batch_size=batch_size)
    assert found.loss == pytest.approx(alone.loss, rel=1e-6)
    assert found.num_supervised_tokens == alone.num_supervised_tokens


def test_dropout_is_off_and_the_mode_comes_back(tuned, examples):
    tuned.train()
    modes = [module.training for module in tuned.modules()]
    assert evaluate_loss(tuned, examples).loss == evaluate_loss(tuned, examples).loss
    assert [module.training for module in tuned.modules()] == modes
