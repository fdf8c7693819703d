"""The adapter computes what PEFT does."""

import importlib.util

from lorakeet.lora.adapter import save_adapter
from lorakeet.proofs.generated import difference
from lorakeet.proofs.library import load_theirs, quiet, their_answers, their_pass
from lorakeet.proofs.passes import SHAKEN, distances, trained
from lorakeet.proofs.proof import Measured, NotChecked, Proof, worst
from lorakeet.proofs.subject import ANSWER_TOKENS, Subject


def ours_is_peft(subject: Subject) -> Measured | NotChecked:
    """Compare losses, gradients of the adapter, and greedy answers with those of PEFT, which loads the saved adapter."""
    if subject.is_quantized:
        return NotChecked("Verify the model itself, which is not quantised: lorakeet verify MODEL")
    if importlib.util.find_spec("peft") is None:
        return NotChecked("Install it: pip install peft")
    folder = subject.scratch / "adapter-peft"
    save_adapter(subject.model, folder)
    with quiet():
        import peft

        theirs = peft.PeftModel.from_pretrained(load_theirs(subject), str(folder), is_trainable=True).eval()
    found = dict(theirs.named_parameters())
    names = {name: f"base_model.model.{name}.default.weight" for name in trained(subject.model)}
    if missing := [name for name, their_name in names.items() if their_name not in found]:
        return NotChecked(f"Nothing to do: {len(missing)} parameters are called otherwise in PEFT, the first is {missing[0]}")
    parameters = {name: found[their_name] for name, their_name in names.items()}
    errors = distances(their_pass(theirs, parameters, subject.examples), subject.alone)
    pairs = zip(their_answers(theirs, subject.prompts, ANSWER_TOKENS), subject.answers, strict=True)
    errors["the answers"] = max(difference(one, other) for one, other in pairs)
    return worst(errors, {**subject.allowed, "the answers": subject.allowed_logprobs}, SHAKEN)


PROOF = Proof(
    name="ours = PEFT",
    compares="Losses, gradients of the adapter and greedy answers, here and of the saved adapter in PEFT over transformers.",
    fix="Use the adapter here only, and report it with the versions that lorakeet doctor names",
    measure=ours_is_peft,
)
