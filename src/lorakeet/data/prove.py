"""The proof that every row teaches what it should, run over every row before training.

data in: Conversations and the Examples made of them → out: nothing, or a DataError naming the first row that fails.

    (a) the ids before each answer are the ids that inference would send       E-DATA-130
    (b) each supervised span decodes to exactly the answer plus its end token  E-DATA-131
    (c) that end token is among the model's stop ids                           E-DATA-132
    (d) one bos at most, none doubled                                          E-DATA-133
    (e) nothing supervised was cut off unless the truncation policy says so    E-DATA-134
    (f) no row without supervised tokens                                       E-DATA-24
        exactly the chosen turns are trained on, and no text became control       E-DATA-135, E-DATA-136
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorakeet.data.conversation import Conversation, Example, Message
from lorakeet.data.encode import Learn, encode_many, supervised_turns
from lorakeet.data.templates.layout import Layout
from lorakeet.data.templates.template import Template
from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import DataError


@dataclass(frozen=True, slots=True)
class _Turn:
    """One assistant turn of one row, and what must hold for it."""

    row: int
    prompt: Conversation
    message: Message
    is_learned: bool


def prove(
    conversation: Conversation, example: Example, tokenizer: Tokenizer, template: Template, *, learn: Learn = "all"
) -> None:
    """Prove one row. Raises DataError if it fails."""
    prove_many([conversation], [example], tokenizer, template, learn=learn)


def prove_many(
    conversations: Sequence[Conversation],
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: Template,
    *,
    learn: Learn = "all",
) -> None:
    """Prove many rows at once. Raises DataError naming the first row that fails."""
    turns: list[_Turn] = []
    for row, (conversation, example) in enumerate(zip(conversations, examples, strict=True)):
        _prove_row(conversation, example, tokenizer, template, learn)
        learned = set(supervised_turns(conversation, learn))
        for index, message in enumerate(conversation.messages):
            if message.role == "assistant" and (learn == "text" or index in learned):
                prompt = replace(conversation, messages=conversation.messages[:index])
                turns.append(_Turn(row, prompt, message, learn != "text"))
    prompts = encode_many([turn.prompt for turn in turns], tokenizer, template, add_generation_prompt=True)
    seen = [0] * len(examples)
    to_decode: list[tuple[_Turn, tuple[int, int]]] = []
    for turn, sent in zip(turns, prompts, strict=True):
        example, prompt_ids = examples[turn.row], sent.input_ids
        start = len(prompt_ids) - example.num_cut
        head = _num_kept_head(example, prompt_ids)
        if start <= head and example.num_cut:
            continue  # this whole turn was truncated away, as the policy allows
        if prompt_ids[head + example.num_cut :] != example.input_ids[head:start]:
            raise _failed("130", "the ids before an answer are not what inference would send", example)
        if turn.is_learned:
            span = next((span for span in example.spans if span[0] == start), None)
            if span is not None:
                seen[turn.row] += 1
                to_decode.append((turn, span))
            elif not example.num_cut:
                raise _failed("135", "an answer that should be trained on is not", example)
    if learn != "text":
        for row, example in enumerate(examples):
            if conversations[row].text is None and seen[row] != len(example.spans):
                raise _failed("135", "something is trained on that is no chosen answer", example)
    _prove_answers(to_decode, examples, tokenizer, template)


def prove_untruncated(before: Example, after: Example) -> None:
    """Prove (e): fitting a row into max_length took no supervised token. Raises DataError if it did."""
    if before.num_supervised_tokens != after.num_supervised_tokens:
        raise _failed("134", "supervised tokens were cut off", before)


def _prove_row(conversation: Conversation, example: Example, tokenizer: Tokenizer, template: Template, learn: Learn) -> None:
    """Prove (d), (f), the shape of the spans, and rows of plain text."""
    ids, spans = example.input_ids, example.spans
    if not spans:
        raise DataError("E-DATA-24", "no supervised tokens", place=example.place, fix="Remove the row")
    border = 1
    for start, end in spans:
        if not border <= start < end <= len(ids):
            raise _failed("135", f"span {start}:{end} is out of order or out of the row", example)
        border = end
    if _has_extra_bos(ids, tokenizer, template):
        raise _failed("133", "the row has more than one bos token", example)
    if (learn == "text" or conversation.text is not None) and spans != ((1, len(ids)),):
        raise _failed("135", "the whole row should be trained on and is not", example)
    if conversation.text is not None:
        _prove_text(conversation.text, example, tokenizer)


def _has_extra_bos(ids: Sequence[int], tokenizer: Tokenizer, template: Template) -> bool:
    """Tell a bos that is doubled, or one too many where the template uses that token for nothing else."""
    bos = tokenizer.bos_id
    if bos is None or bos not in ids:
        return False
    if isinstance(template, Layout) and tokenizer.bos_token not in template.framing:
        return ids.count(bos) > 1
    return any(ids[i] == bos == ids[i + 1] for i in range(len(ids) - 1))


def _prove_text(text: str, example: Example, tokenizer: Tokenizer) -> None:
    """Prove that a row of plain text holds exactly that text, and no control token but its frame."""
    first = int(example.input_ids[0] == tokenizer.bos_id)
    last = len(example.input_ids) - int(example.input_ids[-1] == tokenizer.eos_id)
    body = example.input_ids[first:last]
    unknown = tokenizer.full.token_to_id(tokenizer.unk_token) if tokenizer.unk_token else None
    if any(token in tokenizer.control_ids and token != unknown for token in body):
        raise _failed("136", "text of the row became a control token", example)
    if not example.num_cut and tokenizer.decode(body) not in (text, tokenizer.normalize(text)):
        raise _failed("131", "the supervised tokens do not decode to the text", example)


def _num_kept_head(example: Example, prompt_ids: Sequence[int]) -> int:
    """Count the tokens that truncation kept at the very front: one (the bos) or none."""
    return int(bool(example.num_cut) and example.input_ids[:1] == prompt_ids[:1])


def _prove_answers(
    turns: Sequence[tuple[_Turn, tuple[int, int]]], examples: Sequence[Example], tokenizer: Tokenizer, template: Template
) -> None:
    """Prove (b) and (c) for all supervised answers."""
    texts = tokenizer.decode_inside([examples[turn.row].input_ids[start : end - 1] for turn, (start, end) in turns])
    for (turn, (start, end)), text in zip(turns, texts, strict=True):
        example = examples[turn.row]
        last = example.input_ids[end - 1]
        if last not in tokenizer.control_ids:
            raise _failed("131", "an answer does not end with its end token", example)
        if last not in tokenizer.stop_ids:
            token = tokenizer.decode([last])
            raise _failed("132", f'the end token "{token}" is not among the model\'s stop ids', example)
        after_control = example.input_ids[start - 1] in tokenizer.control_ids
        if not any(_holds(one, turn, tokenizer, template) for one in _readings(text, after_control, tokenizer)):
            raise _failed("131", "the supervised tokens do not decode to the answer", example)


def _readings(text: str, after_control: bool, tokenizer: Tokenizer) -> tuple[str, ...]:
    """List what a decoded span may stand for, given the space that the tokenizer puts after a control token."""
    if not (after_control and tokenizer.prepends_space):
        return (text,)
    bare = text.removeprefix(" ")
    return (bare, text) if tokenizer.merges_leading_space else (bare,)


def _holds(text: str, turn: _Turn, tokenizer: Tokenizer, template: Template) -> bool:
    """Compare with the answer as it is, else as the tokenizer's normalizer leaves it."""
    if template.holds_answer(text, turn.message):
        return True
    normalized = replace(turn.message, content=tokenizer.normalize(turn.message.content))
    return template.holds_answer(text, normalized)


def _failed(number: str, message: str, example: Example) -> DataError:
    return DataError(
        f"E-DATA-{number}",
        f"proof failed: {message}",
        place=example.place,
        fix="Do not train on this: see it with lorakeet check, and report it if row and template are in order",
    )
