"""Answers to many prompts at once are the answers to each alone."""

from lorakeet.proofs.generated import difference, said
from lorakeet.proofs.passes import SHAKEN
from lorakeet.proofs.proof import Measured, Proof
from lorakeet.proofs.subject import ANSWER_TOKENS, Subject


def batched_is_alone(subject: Subject) -> Measured:
    """Compare what the generator finds likely at each token, prompts of several lengths side by side and one by one."""
    together = said(subject.model, subject.prompts, ANSWER_TOKENS)
    error = max(difference(one, other) for one, other in zip(together, subject.answers, strict=True))
    return Measured(error, subject.allowed_logprobs, SHAKEN)


PROOF = Proof(
    name="batched = alone answers",
    compares="Greedy answers token by token, in nats, to prompts of several lengths side by side and one by one.",
    fix="Ask one question at a time; report it with the output of lorakeet doctor",
    measure=batched_is_alone,
    is_quick=True,
)
