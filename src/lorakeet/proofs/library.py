"""The base model as transformers has it, to compare with.

data in: a Subject → out: transformers' model, loaded by its own loader from the base's directory in the same type, with as
many layers as are proven; its losses, gradients and greedy answers. It is a second copy of what is proven, which is small:
see subject.py.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lorakeet.data.conversation import Example
from lorakeet.exports.artefact import Answer
from lorakeet.exports.transformers_reader import TransformersReader
from lorakeet.proofs.generated import Said
from lorakeet.proofs.passes import Pass
from lorakeet.proofs.subject import Subject


def load_theirs(subject: Subject) -> Any:
    """Load the base with transformers."""
    import transformers

    directory, num_layers = subject.chat_model.directory, len(subject.model.model.layers)
    with quiet():
        config = transformers.AutoConfig.from_pretrained(directory)
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:num_layers]
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=subject.dtype)
    return model.to(subject.device).eval()  # type: ignore[arg-type]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to ourselves what other libraries say of each other, and of the layers that are not to be loaded."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        from transformers.utils import logging as theirs

        was_shown = theirs.is_progress_bar_enabled()
        theirs.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        if was_shown:
            theirs.enable_progress_bar()
    finally:
        logging.disable(before)


def their_pass(model: Any, parameters: Mapping[str, Tensor], examples: Sequence[Example]) -> Pass:
    """Return the sum of each row's losses and the gradients of `parameters`, each row by itself."""
    losses = []
    grads = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for example in examples:
        ids = torch.tensor([example.input_ids], device=model.device)
        labels = torch.full_like(ids[0], -100)
        for start, end in example.spans:
            labels[start:end] = ids[0, start:end]
        logits = model(input_ids=ids).logits[0]
        loss = F.cross_entropy(logits[:-1].float(), labels[1:], ignore_index=-100, reduction="sum")
        losses.append(loss.detach())
        for name, grad in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            grads[name] += grad
    return Pass(torch.stack(losses), grads)


def their_answers(model: Any, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Said]:
    """Let transformers answer greedily, with what it found likely at each token."""
    reader = TransformersReader("transformers", model, None)
    answers = reader.answer(prompts, num_tokens)
    return [Said(answer.ids, _likeliest(answer)) for answer in answers]


def _likeliest(answer: Answer) -> list[dict[int, float]]:
    places = zip(answer.top_ids_NK.tolist(), answer.top_logprobs_NK.tolist(), strict=True)
    return [dict(zip(ids, logprobs, strict=True)) for ids, logprobs in places]
