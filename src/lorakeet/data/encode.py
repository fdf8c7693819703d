"""The one encode function: training, evaluation, chat and serving all get their token ids here.

data in: Conversation → out: Example (token ids and the supervised spans). No reading, no packing, no tensors.

How a list of pieces becomes ids:
- control tokens become their ids; whitespace beside them disappears if the tokenizer's flags say so;
- context between two control tokens is encoded in one go, as the tokenizer itself would;
- an answer is encoded apart from the header before it. So the ids before an answer never depend on the answer, and
  what inference sends is an exact prefix of what was trained. The whitespace of an answer is kept, always.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from lorakeet.data.conversation import Conversation, Example
from lorakeet.data.templates.piece import Piece
from lorakeet.data.templates.template import Template
from lorakeet.data.tokenizer import WHITESPACE, Place, Tokenizer
from lorakeet.errors import ConfigError, DataError

REWRITTEN = "E-DATA-126"
"""Code of a row whose supervised answers cannot all be found in one rendering of it."""
Learn = Literal["all", "last", "marked", "text"]
Truncation = Literal["error", "drop", "truncate-left"]


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What of a row is supervised, and what happens to one that is too long."""

    learn: Learn = "all"
    max_length: int | None = None
    """In tokens; None is no limit."""
    truncation: Truncation = "error"


@dataclass(slots=True)
class _Segment:
    """A control token's id, or text whose ids are still to come."""

    ids: list[int] | None
    text: str = ""
    place: Place = "middle"
    turn: int = -1


def encode(
    conversation: Conversation,
    tokenizer: Tokenizer,
    template: Template,
    *,
    learn: Learn = "all",
    add_generation_prompt: bool = False,
    max_length: int | None = None,
    truncation: Truncation = "error",
) -> Example:
    """Encode one conversation.

    With add_generation_prompt the ids are the prompt that inference sends, and nothing is supervised.

    Raises DataError if the row has no supervised token, or does not fit max_length and truncation is not
    "truncate-left".
    """
    example = encode_many([conversation], tokenizer, template, learn=learn, add_generation_prompt=add_generation_prompt)[0]
    if max_length is None:
        return example
    fitted = fit_length(example, max_length, truncation, bos_id=tokenizer.bos_id)
    if fitted is None:
        raise too_long(example, max_length)
    return fitted


def encode_many(
    conversations: Sequence[Conversation],
    tokenizer: Tokenizer,
    template: Template,
    *,
    learn: Learn = "all",
    add_generation_prompt: bool = False,
) -> list[Example]:
    """Encode many conversations at once: the same ids as one by one, with the tokenizer's own threads at work."""
    if learn not in get_args(Learn):
        raise ConfigError("E-CFG-124", f'learn is "{learn}"', fix=f"Choose one of {', '.join(get_args(Learn))}")
    rows = []
    for conversation in conversations:
        if conversation.text is not None:
            pieces = _plain_pieces(conversation.text, tokenizer, add_generation_prompt)
        else:
            pieces = template.render(conversation, add_generation_prompt=add_generation_prompt)
        rows.append(_segments(pieces, tokenizer, conversation.place))
    _fill(rows, tokenizer)
    return [
        _example(segments, conversation, learn, add_generation_prompt)
        for segments, conversation in zip(rows, conversations, strict=True)
    ]


def supervised_turns(conversation: Conversation, learn: Learn) -> list[int]:
    """List the indices of the assistant messages that are supervised; a row's own marks win over the run's option."""
    turns = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    default = set(turns if learn in ("all", "text") else turns[-1:] if learn == "last" else [])
    marks = {i: conversation.messages[i].train for i in turns}
    return [i for i in turns if (i in default if marks[i] is None else marks[i])]


def answer_by_answer(conversation: Conversation, learn: Learn) -> list[Conversation]:
    """Cut a row into one for each supervised answer, which ends with it, as inference writes the conversation then."""
    messages = conversation.messages
    parts = []
    for turn in supervised_turns(conversation, learn):
        earlier = tuple(replace(message, train=False) for message in messages[:turn])
        place = f"{conversation.place} messages[{turn}]".strip()
        parts.append(replace(conversation, messages=(*earlier, replace(messages[turn], train=True)), place=place))
    return parts


def fit_length(example: Example, max_length: int, truncation: Truncation, *, bos_id: int | None) -> Example | None:
    """Fit an example into max_length tokens, or return None if the policy is to drop it.

    Context after the last answer is cut freely, since it holds no target. "truncate-left" keeps the newest
    tokens (and the bos): answers that lose a token become context, and a row that keeps no whole answer is dropped.

    Raises DataError under the policy "error" if an answer would be cut.
    """
    ids, spans = example.input_ids, example.spans
    if len(ids) <= max_length:
        return example
    end = spans[-1][1] if spans else len(ids)
    if end <= max_length and spans:
        return replace(example, input_ids=ids[:max_length])
    if truncation == "error":
        raise too_long(example, max_length)
    if truncation == "drop":
        return None
    head = ids[:1] if bos_id is not None and ids[0] == bos_id else []
    cut = end - (max_length - len(head))
    shift = cut - len(head)
    is_text = spans == ((1, len(ids)),)
    if is_text:  # no answers that must stay whole: every token that is left is supervised
        kept: tuple[tuple[int, int], ...] = ((1, max_length),)
    else:
        kept = tuple((a - shift, b - shift) for a, b in spans if a >= cut and a - shift > 0)
    if spans and not kept:
        return None
    return replace(example, input_ids=head + ids[cut:end], spans=kept, num_cut=shift)


def too_long(example: Example, max_length: int) -> DataError:
    """Return the error of a row that is too long, with its lengths."""
    prompt = example.spans[0][0] if example.spans else len(example.input_ids)
    return DataError(
        "E-DATA-27",
        f"answer beyond the limit: the prompt has {prompt} of {max_length} tokens, the row {len(example.input_ids)}",
        place=example.place,
        fix="Raise --max-length, shorten the row, or choose --truncation drop or truncate-left",
    )


def _plain_pieces(text: str, tokenizer: Tokenizer, is_prompt: bool) -> list[Piece]:
    """Frame a plain text as the tokenizer itself would: bos if it adds one; a supervised eos at the end."""
    adds_bos = tokenizer.bos_id is not None and tokenizer.bos_id in tokenizer.full.encode("").ids
    pieces = [Piece(tokenizer.bos_token or "", "control")] if adds_bos else []
    pieces.append(Piece(text, "answer", 0))
    if tokenizer.eos_token and not is_prompt:
        pieces.append(Piece(tokenizer.eos_token, "control", 0))
    return pieces


def _segments(pieces: Sequence[Piece], tokenizer: Tokenizer, place: str) -> list[_Segment]:
    """Join pieces into stretches of text that are encoded in one go, and apply the control tokens' strip flags.

    A tokenizer that reads the whole rendered text cuts it at the control tokens and encodes what lies between two of
    them in one go. So pieces of one kind are joined until the next control token; a border between context and an
    answer is a cut as well, so that no token is half prompt, half answer (prove.py has seen that the ids are the same).

    Whitespace beside a control token belongs to the token if its flags say so: with `rstrip` the token takes what
    follows it, with `lstrip` what precedes it. Context loses that whitespace here; an answer keeps it, since it is what
    the model is to write. `place` tells the tokenizer what a text follows, for SentencePiece models write a leading
    space only at some places: at the "start" of the row, in the "middle" behind a control token, or as the
    "continuation" of another text.
    """
    segments: list[_Segment] = []
    joined = ""  # text not yet flushed
    kind, turn = "context", -1
    swallow = False  # the last control token takes the whitespace after it, and no text came since

    def flush(*, before_lstrip: bool = False) -> None:
        nonlocal joined
        text, joined = joined, ""
        if kind == "context":
            text = text.lstrip(WHITESPACE) if swallow else text
            text = text.rstrip(WHITESPACE) if before_lstrip else text
        if text:
            where: Place = "start" if not segments else "continuation" if segments[-1].ids is None else "middle"
            segments.append(_Segment(None, text, where, turn))

    for piece in pieces:
        if piece.kind == "control":
            token = tokenizer.control_tokens.get(piece.text)
            if token is None:
                raise DataError(
                    "E-DATA-125",
                    f'the template writes "{piece.text}", which is no control token of this vocabulary',
                    place=place,
                    fix="Name a template that fits the model with --template",
                )
            flush(before_lstrip=token.lstrip)
            segments.append(_Segment([token.id], turn=piece.turn))
            kind, turn, swallow = "context", -1, token.rstrip
            continue
        if joined and (piece.kind, piece.turn) != (kind, turn):
            flush()
        if segments and segments[-1].ids is None:
            swallow = False
        joined, kind, turn = joined + piece.text, piece.kind, piece.turn
    flush()
    return segments


def _fill(rows: Sequence[Sequence[_Segment]], tokenizer: Tokenizer) -> None:
    """Encode the texts of all rows, every distinct one once."""
    wanted: dict[Place, dict[str, list[int]]] = {}
    for segments in rows:
        for segment in segments:
            if segment.ids is None:
                wanted.setdefault(segment.place, {})[segment.text] = []
    for place, texts in wanted.items():
        for text, ids in zip(list(texts), tokenizer.encode_texts(list(texts), place=place), strict=True):
            texts[text] = ids
    for segments in rows:
        for segment in segments:
            if segment.ids is None:
                segment.ids = wanted[segment.place][segment.text]


def _example(segments: Sequence[_Segment], conversation: Conversation, learn: Learn, is_prompt: bool) -> Example:
    """Join the ids and mark the supervised spans."""
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    turns = {0} if conversation.text is not None else set(supervised_turns(conversation, learn))
    last_turn = -1
    for segment in segments:
        start = len(ids)
        ids += segment.ids or []
        if segment.turn in turns and not is_prompt:
            if spans and last_turn == segment.turn:
                spans[-1] = (spans[-1][0], len(ids))
            else:
                spans.append((start, len(ids)))
            last_turn = segment.turn
    if is_prompt:
        return Example(ids, (), conversation.place)
    if learn == "text" and conversation.text is None:
        spans = [(1, len(ids))]
    # Nothing predicts a first token, so it is never a target.
    spans = [(max(start, 1), end) for start, end in spans if end > max(start, 1)]
    if rewritten := sorted(turns - {segment.turn for segment in segments}):
        raise DataError(
            REWRITTEN,
            f"messages[{rewritten[0]}]: the model's chat template writes earlier turns differently once later ones follow",
            place=conversation.place,
            fix="Train on answers, not on the whole text, or name a template with --template",
        )
    if not spans:
        raise DataError(
            "E-DATA-24",
            "nothing to train: no answer of this row is trained on",
            place=conversation.place,
            fix='Give the row an assistant message, or choose another "learn" option',
        )
    return Example(ids, tuple(spans), conversation.place)
