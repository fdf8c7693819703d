"""The loss of held-out rows, per supervised token.

data in: a model, encoded examples → out: mean loss, perplexity and the count behind them. The loss is the sum over
all supervised tokens divided by their number, so it does not depend on how the rows are batched, nor on how many
processes share them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorakeet import dist
from lorakeet.data.conversation import Example
from lorakeet.infer.mode import evaluating
from lorakeet.models.decoder import CausalLM
from lorakeet.objectives.sft import pack_for, packed_loss


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
    model: CausalLM, examples: Sequence[Example], *, batch_size: int = 8, on_progress: Callable[[int, int], None] | None = None
) -> EvalLoss:
    """Compute the loss of `examples`, in evaluation mode; `on_progress` is called with (rows done, rows in all).

    Several processes share the rows and all get the result. Each makes as many passes as the first one, since they
    may hold parts of one model: one that is out of rows repeats a row, which does not count.
    """
    mine, num_mine = examples[dist.rank() :: dist.world_size()], len(examples[:: dist.world_size()])
    total, supervised = 0.0, 0
    if on_progress is not None:
        on_progress(0, len(examples))
    with evaluating(model):
        for start in range(0, num_mine, batch_size):
            rows = mine[start : start + batch_size]
            batch = pack_for(model, rows or examples[:1])
            loss = packed_loss(model, batch).item()
            if rows:
                total, supervised = total + loss, supervised + batch.num_supervised_tokens
            if on_progress is not None:
                on_progress(min((start + batch_size) * dist.world_size(), len(examples)), len(examples))
    total, num_supervised = dist.totals(total, supervised)
    return EvalLoss(total / num_supervised, int(num_supervised), len(examples))
