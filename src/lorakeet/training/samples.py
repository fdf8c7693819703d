"""Answers of the model at every evaluation, to see what the loss cannot say.

data in: prompts, or held-out conversations → out: greedy answers by the one generator, as rows for RUN/samples.jsonl and
the console. Nothing of training is touched: no dropout, no random number, every module's own mode afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from lorakeet import progress
from lorakeet.chat_model import ChatModel
from lorakeet.config import RunConfig
from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.prepare import PreparedData
from lorakeet.errors import ConfigError, DataError
from lorakeet.evaluation.generation import last_text, question_of, reference_of
from lorakeet.infer.answers import answer_prompts, encode_prompts
from lorakeet.models.decoder import CausalLM
from lorakeet.rundir.rows import SampleRow


@dataclass(frozen=True)
class Question:
    """What is asked at every evaluation."""

    conversation: Conversation
    reference: str | None = None
    """The expected answer, if the question is a held-out row."""


def questions_for(config: RunConfig, data: PreparedData, chat_model: ChatModel) -> list[Question]:
    """List what the configuration asks for: its own prompts, or the last answers of held-out rows."""
    wanted = config.training_config.sample_prompts
    if isinstance(wanted, int):
        answered = [row for row in data.held_out_rows if any(turn.role == "assistant" for turn in row.messages)]
        return [Question(question_of(row), reference_of(row, chat_model.template)) for row in answered[:wanted]]
    system = config.data.system if config.data.system is not None else data.system
    opening = [Message("system", system)] if system is not None else []
    return [
        Question(Conversation((*opening, Message("user", prompt)), place=f"sample_prompts[{index}]"))
        for index, prompt in enumerate(wanted)
    ]


class Sampler:
    """Answers the same questions whenever it is called."""

    def __init__(self, chat_model: ChatModel, questions: Sequence[Question], *, max_new_tokens: int) -> None:
        """Encode the questions.

        Raises: ConfigError E-CFG-44 if a question leaves no room for an answer.
        """
        self.chat_model, self.questions, self.max_new_tokens = chat_model, questions, max_new_tokens
        try:
            self.prompts = encode_prompts(chat_model, [question.conversation for question in questions])
        except DataError as error:
            if error.code != "E-DATA-27":
                raise
            raise ConfigError("E-CFG-44", error.message, place=error.place, fix="Shorten the prompt") from None

    def sample(self, model: CausalLM, step: int) -> list[SampleRow]:
        """Answer every question with `model`, which may be the one being trained."""
        chat_model = replace(self.chat_model, model=model)
        # A cache that grows would be compiled anew for every length.
        with torch.compiler.set_stance("force_eager"):
            answers = answer_prompts(
                chat_model,
                self.prompts,
                max_new_tokens=self.max_new_tokens,
                on_progress=partial(progress.report, "answering sample prompts") if self.prompts else None,
            )
        return [
            SampleRow(
                step=step,
                place=question.conversation.place,
                prompt=last_text(question.conversation),
                reference=question.reference,
                text=answer.text,
                stop_reason=answer.stop_reason,
            )
            for question, answer in zip(self.questions, answers, strict=True)
        ]
