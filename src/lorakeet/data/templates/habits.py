"""What a chat template does to a conversation that a person would not expect, found by rendering small ones.

data in: a template, rows → out: notes, a line each, with how many rows each concerns. No row is rendered here.
"""

from collections.abc import Callable, Sequence

from lorakeet.data.conversation import Conversation, Message, split_reasoning
from lorakeet.data.templates.template import Template
from lorakeet.errors import DataError

_SYSTEM, _USER = Message("system", "Lorakeet-S"), Message("user", "Lorakeet-U")
_ANSWER, _SPACED = Message("assistant", "Lorakeet-A"), Message("assistant", " Lorakeet-A \n")
_REASONED = Message("assistant", "<think>\nLorakeet-R\n</think>\n\nLorakeet-A")


def template_notes(template: Template, rows: Sequence[Conversation], num_apart: int) -> dict[str, int]:
    """Return what the template does to these rows, each with the number of rows; `num_apart` were encoded answer by answer."""
    turns = [row for row in rows if row.text is None]
    if not turns:
        return {}
    counts = {
        text: sum(map(concerns, turns))
        for has_habit, concerns, text in _HABITS
        if any(map(concerns, turns)) and has_habit(template)
    }
    apart = "each answer is its own example: the template rewrites earlier turns"
    return counts | ({apart: num_apart} if num_apart else {})


def _rendered(template: Template, *messages: Message, asks: bool = False) -> list[str]:
    """Render a conversation as stretches of text between control tokens; nothing if the template refuses it."""
    try:
        pieces = template.render(Conversation(messages), add_generation_prompt=asks)
    except DataError:
        return []
    texts = [""]
    for piece in pieces:
        texts += [piece.text, ""] if piece.kind == "control" else []
        texts[-1] += piece.text if piece.kind != "control" else ""
    return texts


def _merges_system(template: Template) -> bool:
    return any(_SYSTEM.content in text and _USER.content in text for text in _rendered(template, _SYSTEM, _USER, asks=True))


def _has_own_system(template: Template) -> bool:
    return any("system" in text.lower() for text in _rendered(template, _USER, asks=True))


def _drops_reasoning(template: Template) -> bool:
    texts = _rendered(template, _USER, _REASONED, _USER, asks=True)
    return bool(texts) and not any("Lorakeet-R" in text for text in texts)


def _adds_reasoning(template: Template) -> bool:
    asked, answered = _rendered(template, _USER, asks=True), _rendered(template, _USER, _ANSWER)
    return answered.count("<think>") > asked.count("<think>")


def _strips(template: Template) -> bool:
    texts = _rendered(template, _USER, _SPACED)
    return bool(texts) and not any(_SPACED.content in text for text in texts)


def _opens_with_system(row: Conversation) -> bool:
    return bool(row.messages) and row.messages[0].role == "system"


def _answers(row: Conversation) -> list[str]:
    return [message.content for message in row.messages if message.role == "assistant"]


_HABITS: list[tuple[Callable[[Template], bool], Callable[[Conversation], bool], str]] = [
    (_merges_system, _opens_with_system, "the template writes the system prompt into a user turn"),
    (
        _has_own_system,
        lambda row: not _opens_with_system(row),
        "the template writes a system turn of its own into rows without one",
    ),
    (
        lambda template: template.writes_day,
        lambda row: True,
        "the template writes the date: in rows the run's, in a chat that day's",
    ),
    (
        _drops_reasoning,
        lambda row: any(split_reasoning(text)[0] for text in _answers(row)[:-1]),
        "the template leaves the reasoning out of earlier answers",
    ),
    (
        _adds_reasoning,
        lambda row: any(not split_reasoning(text)[0] for text in _answers(row)),
        "an empty <think> block is trained on before answers without reasoning",
    ),
    (
        _strips,
        lambda row: any(text != text.strip() for text in _answers(row)),
        "the template strips the white space around answers",
    ),
]
