"""Generation with a cache is generation without."""

from lorakeet.proofs.generated import difference_from
from lorakeet.proofs.passes import SHAKEN
from lorakeet.proofs.proof import Measured, Proof
from lorakeet.proofs.subject import Subject


def cached_is_uncached(subject: Subject) -> Measured:
    """Compare what the generator finds likely at each token of its answers with plain passes over prompt and answer."""
    pairs = zip(subject.uncached, subject.answers, strict=True)
    return Measured(max(difference_from(plain, answer) for plain, answer in pairs), subject.allowed_logprobs, SHAKEN)


PROOF = Proof(
    name="cached = uncached answers",
    compares="Greedy answers token by token, in nats: the generator's, with its cache, and plain passes over the whole text.",
    fix="Do not trust answers or scores from here; report it with the output of lorakeet doctor",
    measure=cached_is_uncached,
    is_quick=True,
)
