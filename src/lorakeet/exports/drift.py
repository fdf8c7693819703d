"""How far an exported model is from the model that was trained, where the base was quantised while it trained.

data in: a run → out: Drift. The adapter was trained over the rounded base, and is exported over the 16-bit one, so the
two never agree exactly; how much they differ is measured and reported.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorakeet.chat_model import ChatModel
from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import encode_many
from lorakeet.exports.artefact import Source
from lorakeet.models.decoder import CausalLM

PROMPTS = (
    ("Name three primary colours.", "Red, yellow and blue are the primary colours of paint."),
    ("What is 17 times 23?", "17 times 23 is 391: 17 times 20 is 340, and 17 times 3 is 51."),
    ("Write a sentence about the sea.", "The sea was calm that evening, and the last boats came home."),
    ("def square(x):", "def square(x):\n    return x * x"),
)


@dataclass(frozen=True)
class Drift:
    """The differences of two models' next-token distributions over some text."""

    mean_kl: float
    """Mean Kullback-Leibler divergence of the merged model from the trained one, in nats a token."""
    max_kl: float
    """The largest one."""
    relative_error: float
    """Norm of the logits' difference, divided by the norm of the trained model's logits."""
    num_tokens: int


def drift_of_base(source: Source) -> Drift | None:
    """Compare the run's model over the 16-bit base with the one that was trained; None if the base is the same."""
    if source.trained is None:
        return None
    before = reference_logits(source.trained())  # held by nothing, so that one model at a time is in memory
    exported = ChatModel(source.load(), source.tokenizer, source.template, source.base)
    return measure_drift(before, reference_logits(exported))


def reference_logits(chat_model: ChatModel) -> torch.Tensor:
    """Compute the logits of a model on a few fixed exchanges, (tokens, vocabulary), float32."""
    rows = [Conversation((Message("user", q), Message("assistant", a))) for q, a in PROMPTS]
    encoded = [row.input_ids for row in encode_many(rows, chat_model.tokenizer, chat_model.template)]
    return torch.cat([_logits(chat_model.model, ids) for ids in encoded])


def _logits(model: CausalLM, ids: Sequence[int]) -> torch.Tensor:
    device = model.lm_head.weight.device
    borders = torch.tensor([0, len(ids)], dtype=torch.int32, device=device)
    with torch.inference_mode():
        hidden = model(torch.tensor(ids, device=device), torch.arange(len(ids), device=device), borders)
        return model.logits(hidden).float().cpu()


def measure_drift(trained_TV: torch.Tensor, merged_TV: torch.Tensor) -> Drift:
    """Compare two models' logits on the same tokens."""
    log_p, log_q = trained_TV.log_softmax(-1), merged_TV.log_softmax(-1)
    kl_T = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)
    return Drift(
        mean_kl=kl_T.mean().item(),
        max_kl=kl_T.max().item(),
        relative_error=((merged_TV - trained_TV).norm() / trained_TV.norm()).item(),
        num_tokens=len(kl_T),
    )
