"""The base model computes what transformers does."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from lorakeet.lora.disable import disabled_adapters
from lorakeet.proofs.generated import answer_rounding, difference, said
from lorakeet.proofs.library import load_theirs, their_answers, their_pass
from lorakeet.proofs.passes import SHAKEN, distances, loss_and_grads, rounding_of
from lorakeet.proofs.proof import Measured, NotChecked, Proof, worst
from lorakeet.proofs.subject import ANSWER_TOKENS, Subject


def ours_is_transformers(subject: Subject) -> Measured | NotChecked:
    """Compare losses, the gradients of all norms, and greedy answers with those of transformers over the same weights."""
    if subject.is_quantized:
        return NotChecked("Verify the model itself, which is not quantised: lorakeet verify MODEL")
    model, theirs = subject.model, load_theirs(subject)
    norms = [name for name, parameter in model.named_parameters() if parameter.ndim == 1 and "norm" in name]
    batches = [subject.batch([example]) for example in subject.examples]
    with disabled_adapters(model), _training_only(model, norms):
        mine = loss_and_grads(model, batches)
        tolerances = rounding_of(model, batches, mine)
        answers = [said(model, [prompt], ANSWER_TOKENS)[0] for prompt in subject.prompts]
        tolerances["the answers"] = answer_rounding(model, subject.prompts, answers)
    errors = distances(their_pass(theirs, {name: theirs.get_parameter(name) for name in norms}, subject.examples), mine)
    found = their_answers(theirs, subject.prompts, ANSWER_TOKENS)
    errors["the answers"] = max(difference(one, other) for one, other in zip(found, answers, strict=True))
    return worst(errors, tolerances, SHAKEN)


@contextmanager
def _training_only(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let gradients flow to these parameters alone while the block runs."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)
        for name in names:
            model.get_parameter(name).requires_grad_(True)
        yield
    finally:
        for parameter, requires_grad in before.items():
            parameter.requires_grad_(requires_grad)


PROOF = Proof(
    name="ours = transformers",
    compares="Losses, gradients of all norms and greedy answers of the base model, here and in transformers.",
    fix="Check the model's files (download it again), and report it with the versions that lorakeet doctor names",
    measure=ours_is_transformers,
)
