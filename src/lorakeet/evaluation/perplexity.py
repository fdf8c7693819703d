"""The loss of held-out rows, per supervised token.

data in: a model, encoded examples → out: mean loss, perplexity and the count behind them. The loss is the sum over
all supervised tokens divided by their number, so it does not depend on how the rows are batched.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lorakeet.data.conversation import Example
from lorakeet.data.pack import pack
from lorakeet.loss import packed_loss
from lorakeet.models.phi3 import Phi3ForCausalLM


@dataclass(frozen=True)
class EvalLoss:
    """Loss over held-out rows."""

    loss: float
    """Mean over supervised tokens, in nats."""
    num_supervised_tokens: int
    num_conversations: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, without gradients, and give each its own mode back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    assert not any(module.training for module in model.modules())
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def evaluate_loss(model: Phi3ForCausalLM, examples: Sequence[Example], *, batch_size: int = 8) -> EvalLoss:
    """Compute the loss of `examples`, in evaluation mode."""
    device = model.lm_head.weight.device
    total, supervised = 0.0, 0
    with evaluating(model):
        for start in range(0, len(examples), batch_size):
            batch = pack(examples[start : start + batch_size]).to(device)
            total += packed_loss(model, batch).item()
            supervised += batch.num_supervised_tokens
    return EvalLoss(total / supervised, supervised, len(examples))
