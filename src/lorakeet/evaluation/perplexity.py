"""The loss of held-out rows, per supervised token.

data in: a model, encoded examples → out: mean loss, perplexity and the count behind them. The loss is the sum over
all supervised tokens divided by their number, so it does not depend on how the rows are batched.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorakeet.data.conversation import Example
from lorakeet.infer.mode import evaluating
from lorakeet.loss import pack_for, packed_loss
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


def evaluate_loss(
    model: Phi3ForCausalLM,
    examples: Sequence[Example],
    *,
    batch_size: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvalLoss:
    """Compute the loss of `examples`, in evaluation mode; `on_progress` is told (rows done, rows in all)."""
    total, supervised = 0.0, 0
    with evaluating(model):
        for start in range(0, len(examples), batch_size):
            batch = pack_for(model, examples[start : start + batch_size])
            total += packed_loss(model, batch).item()
            supervised += batch.num_supervised_tokens
            if on_progress is not None:
                on_progress(min(start + batch_size, len(examples)), len(examples))
    return EvalLoss(total / supervised, supervised, len(examples))
