"""The conversations by which an artefact is compared with the live model.

data in: a run's held-out rows, its template → out: 50 prompts, each a conversation that ends where an answer begins.
The rows come first; made-up ones fill up: several turns, several lines, system prompts, many scripts, code, and text
that looks like control tokens. A prompt that names a control token of this vocabulary is left out: in training that
was text, while other programs read it as the token itself, whatever the artefact says.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.encode import encode
from lorakeet.errors import DataError, LorakeetError
from lorakeet.exports.artefact import Source

NUM_PROBES = 50
MAX_ROWS = 25
"""Probes that are rows of the run; the others cover what the rows may lack."""
MAX_TOKENS = 512
"""Longer prompts are left out: they cost time and show nothing more."""

_SYSTEMS = (
    None,
    "You are a careful assistant.",
    "Answer briefly.\nUse plain words.\n\n- no lists\n- no code",
    "Du bist ein höflicher Assistent — antworte auf Deutsch. 你好!",
)
_QUESTIONS = (
    "What is the capital of France?",
    "Write two lines\nabout the sea.\n\nThen one more.",
    "Übersetze: «Was kostet das?» — ça coûte 12,50 €.",
    "日本語で自己紹介してください。",
    "Расскажи о Москве в двух словах 🙂👩‍👩‍👧",
    "def f(x):\n    if x > 0:\n\t\treturn x ** 2\n    return -1",
    "Is <|this|> a token? And < |end| >, </div>, [INST], <|im_sta, or |im_end|>?",
    "  two spaces in front,   three inside, and 1234567890 digits 3.14159",
    "مرحبا، كيف حالك؟ नमस्ते दुनिया",
    '{"name": "get_weather", "arguments": {"city": "São Paulo", "unit": "°C"}}',
)
_ANSWER = "It is Paris.\n\nAnything else?"


@dataclass(frozen=True)
class Probes:
    """Prompts with the ids that training makes of them."""

    conversations: tuple[Conversation, ...]
    ids: tuple[list[int], ...]
    num_rows: int
    """How many of them are the run's own held-out rows."""
    num_unsayable: int
    """Rows left out because their text names control tokens."""
    notes: tuple[str, ...] = ()
    """Why there are no rows among them, if they could not be read."""


def choose_probes(source: Source, *, count: int = NUM_PROBES) -> Probes:
    """Choose the probes of a run and encode them as training does."""
    conversations: list[Conversation] = []
    ids: list[list[int]] = []
    num_unsayable = 0
    longest = min(MAX_TOKENS, source.config.max_position_embeddings // 2)

    def take(candidates: Iterable[Conversation], most: int) -> None:
        nonlocal num_unsayable
        for candidate in candidates:
            if len(conversations) >= most:
                return
            try:
                found = encode(candidate, source.tokenizer, source.template, add_generation_prompt=True).input_ids
            except DataError:  # a role that this template has no place for
                continue
            if len(found) > longest:
                continue
            if found != _ids_of_text(source, candidate):
                num_unsayable += 1
                continue
            conversations.append(candidate)
            ids.append(found)

    rows, notes = _rows(source)
    # llama.cpp composes no accents, where the tokenizers of Qwen do.
    take((one for one in _prompts(rows) if unicodedata.is_normalized("NFC", one.said)), min(MAX_ROWS, count))
    num_rows = len(conversations)
    swallows = any(token.rstrip for token in source.tokenizer.control_tokens.values())
    made_up = dict.fromkeys(_made_up(source.system))
    # White space that a control token swallows is text to programs that know no such tokens: nothing that all could pass.
    take((one for one in made_up if not (swallows and _begins_with_space(one))), count)
    return Probes(tuple(conversations), tuple(ids), num_rows, num_unsayable, notes)


def _rows(source: Source) -> tuple[Sequence[Conversation], tuple[str, ...]]:
    """Read the run's held-out rows; a run whose data is gone or changed is proven with the made-up probes alone."""
    try:
        return source.rows(), ()
    except (LorakeetError, OSError) as error:
        return (), (f"no held-out rows among the prompts, only built-in ones: {error}",)


def _begins_with_space(conversation: Conversation) -> bool:
    return any(message.content[:1].isspace() for message in conversation.messages)


def _ids_of_text(source: Source, conversation: Conversation) -> list[int]:
    """Tokenise the rendered conversation as one text, as every other program does."""
    pieces = source.template.render(conversation, add_generation_prompt=True)
    return source.tokenizer.full.encode("".join(piece.text for piece in pieces), add_special_tokens=False).ids


def _prompts(rows: Iterable[Conversation]) -> Iterator[Conversation]:
    """Cut rows before their last answer."""
    for row in rows:
        answers = [i for i, message in enumerate(row.messages) if message.role == "assistant"]
        messages = row.messages[: answers[-1]] if answers else row.messages
        if messages and messages[-1].role != "assistant" and not row.tools:
            yield Conversation(messages, row.place)


def _made_up(system: str | None) -> Iterator[Conversation]:
    """Combine system prompts and questions, every other one with a second turn."""
    systems = (system, *_SYSTEMS) if system is not None else _SYSTEMS
    num = len(_QUESTIONS)
    for shift in range(num):
        for i, question in enumerate(_QUESTIONS):
            for j, opening in enumerate(systems):
                messages = [Message("system", opening)] if opening is not None else []
                messages.append(Message("user", question))
                if (i + j + shift) % 2:
                    messages += [Message("assistant", _ANSWER), Message("user", _QUESTIONS[(i + shift) % num])]
                yield Conversation(tuple(messages), "probe")
