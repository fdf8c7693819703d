"""Answers to held-out conversations, and how near they come to the answers that are there.

data in: a model, conversations → out: for each one the reference (its last assistant turn) and the text that the
model generates from everything before it, with scores. Greedy, in batches, by the one generator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lorakeet.chat_model import ChatModel
from lorakeet.data.conversation import Conversation, split_reasoning
from lorakeet.data.templates.template import Template
from lorakeet.data.tokenizer import SPOKEN
from lorakeet.errors import DataError
from lorakeet.evaluation.metrics import Metric
from lorakeet.infer.answers import answer_prompts, encode_prompts
from lorakeet.infer.engine import StopReason


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said where a reference was known."""

    place: str
    prompt: str
    """The last thing said before the answer."""
    reference: str
    text: str
    stop_reason: StopReason
    num_tokens: int = 0
    """Length of the answer, without the token that ended it."""
    scores: dict[str, float] = field(default_factory=dict)
    """By name of the metric, from 0 to 1."""


def generate_answers(
    chat_model: ChatModel,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int,
    metrics: Mapping[str, Metric] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Answer every conversation's last assistant turn anew, greedily.

    Args:
        on_progress: called with (answers done, answers in all).
    Raises: DataError if a conversation has no assistant turn, or its prompt does not fit the model's context.
    """
    questions = [question_of(conversation) for conversation in conversations]
    prompts = encode_prompts(chat_model, questions)
    generated = answer_prompts(chat_model, prompts, max_new_tokens=max_new_tokens, on_progress=on_progress)
    answers = [
        Answer(
            place=conversation.place,
            prompt=last_text(question),
            reference=reference_of(conversation, chat_model.template),
            text=one.text,
            stop_reason=one.stop_reason,
            num_tokens=one.num_tokens,
        )
        for conversation, question, one in zip(conversations, questions, generated, strict=True)
    ]
    return [_scored(answer, metrics or {}) for answer in answers]


def mean_scores(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the mean of every score over all answers."""
    names = answers[0].scores if answers else {}
    return {name: sum(answer.scores[name] for answer in answers) / len(answers) for name in names}


def _last_answer(conversation: Conversation) -> int:
    """Find the assistant turn that is the reference."""
    turns = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    if not turns:
        raise DataError(
            "E-DATA-24",
            "there is no assistant turn to compare with",
            place=conversation.place,
            fix="Remove the row, or evaluate with --metrics loss alone",
        )
    return turns[-1]


def question_of(conversation: Conversation) -> Conversation:
    """Return the conversation up to its last answer."""
    return replace(conversation, messages=conversation.messages[: _last_answer(conversation)])


def last_text(question: Conversation) -> str:
    """Return what was said last, as the prompt to show."""
    return question.messages[-1].content if question.messages else ""


def reference_of(conversation: Conversation, template: Template) -> str:
    """Return the last answer as the template writes it, tool calls and the marks of reasoning included, as it is generated."""
    turn = _last_answer(conversation)
    upto = replace(conversation, messages=conversation.messages[: turn + 1])
    pieces = [piece for piece in template.render(upto) if piece.turn == turn]
    return "".join(piece.text for piece in pieces if piece.kind == "answer" or piece.text in SPOKEN)


def without_reasoning(text: str) -> str:
    """Return what an answer says after its reasoning: scores are of that alone."""
    _, answer = split_reasoning(text)
    return answer.lstrip("\n") if answer != text else text


def _scored(answer: Answer, metrics: Mapping[str, Metric]) -> Answer:
    reference, text = without_reasoning(answer.reference), without_reasoning(answer.text)
    return replace(answer, scores={name: metric(reference, text) for name, metric in metrics.items()})
