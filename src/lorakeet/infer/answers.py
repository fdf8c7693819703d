"""Answers to many conversations at once, for evaluation, for samples during training, and for proofs.

data in: a ChatModel, conversations that end before an answer → out: one text each. Prompts are encoded by the one
encode function and answered by the one generator.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorakeet.chat_model import ChatModel
from lorakeet.data.conversation import Conversation
from lorakeet.data.encode import encode_many
from lorakeet.errors import DataError
from lorakeet.infer.engine import StopReason, generate
from lorakeet.infer.sampling import GREEDY, Sampling


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """What a model said after one prompt."""

    text: str
    stop_reason: StopReason
    num_tokens: int
    """Without the token that ended it."""


def encode_prompts(chat_model: ChatModel, questions: Sequence[Conversation]) -> list[list[int]]:
    """Encode conversations up to where the model's answer begins.

    Raises: DataError E-DATA-27 if a prompt leaves no room for an answer in the model's context.
    """
    tokenizer, template = chat_model.tokenizer, chat_model.template
    examples = encode_many(questions, tokenizer, template, add_generation_prompt=True)
    for example in examples:
        if len(example.input_ids) >= chat_model.context:
            raise DataError(
                "E-DATA-27",
                f"the prompt has {len(example.input_ids)} tokens; the model's context holds {chat_model.context}",
                place=example.place,
                fix="Shorten or remove the row",
            )
    return [example.input_ids for example in examples]


def answer_prompts(
    chat_model: ChatModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[GeneratedText]:
    """Generate after every prompt; control tokens leave no text. `on_progress` gets (answers done, answers in all)."""
    tokenizer, ended = chat_model.tokenizer, itertools.count(1)
    if on_progress is not None:
        on_progress(0, len(prompts))
    generations = generate(
        chat_model.model,
        prompts,
        stop_ids=tokenizer.stop_ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        on_end=None if on_progress is None else lambda: on_progress(next(ended), len(prompts)),
    )
    return [GeneratedText(tokenizer.decode(one.ids, skip_control=True), one.stop_reason, len(one.ids)) for one in generations]
