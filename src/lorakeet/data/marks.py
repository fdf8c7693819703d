"""What a row says about itself: which answers to train on, whether it is a good one, whether a template was applied.

data in: rows and messages as dictionaries → out: a message's mark, or a DataError for a row that must not be trained on
as it stands. No formats, no tokens.
"""

import re
from collections.abc import Mapping
from typing import Any

from lorakeet.data.values import EMPTY, kind, wrong
from lorakeet.errors import DataError

FLAGS = ("train", "training", "loss")
"""Keys by which tools mark an answer with true or false."""
MARK_KEYS = frozenset({*FLAGS, "weight", "train_detail"})
_UNREAD_MASKS = ("mask", "masked", "loss_mask", "loss_weight", "train_details", "training_detail", "train_on_turn")

_VERDICT = re.compile(r"(chosen|rejected)(_\w+)?", re.I)
_LABELS = ("label", "kto_tag")

# Of each family of templates: what opens a turn, and the other marks that stand beside it.
_FAMILIES = (
    (r"<\|im_start\|>", r"<\|im_end\|>|<\|im_sep\|>"),
    (r"<\|(?:user|assistant|system|tool)\|>", r"<\|end\|>|</s>"),
    (r"<\|start_header_id\|>", r"<\|end_header_id\|>|<\|eot_id\|>"),
    (r"<\|header_start\|>", r"<\|header_end\|>|<\|eot\|>"),
    (r"<start_of_turn>", r"<end_of_turn>"),
    (r"<\|turn>", r"<turn\|>"),
    (r"\[INST\]|\[SYSTEM_PROMPT\]", r"\[/INST\]|\[/SYSTEM_PROMPT\]|<<SYS>>"),
    (r"<\|start\|>", r"<\|message\|>|<\|channel\|>|<\|end\|>"),
    (r"<\|START_OF_TURN_TOKEN\|>", r"<\|END_OF_TURN_TOKEN\|>"),
    (r"<\|start_of_role\|>", r"<\|end_of_role\|>"),
    ("<\uff5c(?:User|Assistant)\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
)
_BEGIN = "\\s*(?:(?:<s>|<bos>|<\\|begin_of_text\\|>|<\\|endoftext\\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>)\\s*)*"
_OPENING = re.compile(_BEGIN + "(" + "|".join(opening for opening, _ in _FAMILIES) + ")")
_MARKS = [re.compile(f"{opening}|{others}") for opening, others in _FAMILIES]
_END = re.compile(
    "(</s>|<eos>|<\\|endoftext\\|>|<\\|end_of_text\\|>|<\\|eot_id\\|>|<\\|im_end\\|>|<\\|end\\|>|<end_of_turn>|"
    "<\uff5cend\u2581of\u2581sentence\uff5c>)\\s*\\Z"
)


def train_mark(item: dict[str, Any], content: str, place: str, where: str, role: str) -> bool | None:
    """Read a message's own mark: train, training or loss (true, false, 1, 0), weight (1, 0), or train_detail.

    Raises DataError for marks of the wrong kind, marks that contradict each other, and marks that are not read here.
    """
    marks = {key: _flag(item[key], place, f"{where}.{key}") for key in FLAGS if item.get(key) is not None}
    if item.get("train_detail") not in EMPTY:
        marks["train_detail"] = _detail(item["train_detail"], content, place, f"{where}.train_detail")
    if role != "assistant" and True in marks.values():
        # Weight 1 is what some exporters write on every message; only these keys ask for the impossible.
        key = next(key for key, mark in marks.items() if mark)
        raise DataError(
            "E-DATA-107",
            f"{where}.{key} is true on a {role} message; only answers are trained one by one",
            place=place,
            fix="Remove it, or train on everything with --learn text",
        )
    if (weight := item.get("weight")) is not None:
        if isinstance(weight, bool) or weight not in (0, 1):
            raise wrong("E-DATA-106", f"{where}.weight is {str(weight)[:20]}; expected 0 or 1", place)
        marks["weight"] = bool(weight)
    if len(set(marks.values())) > 1:
        both = " and ".join(f"{where}.{key}" for key in marks)
        raise wrong("E-DATA-106", f"{both} contradict each other", place)
    for key in _UNREAD_MASKS:
        if item.get(key) not in EMPTY:
            raise DataError(
                "E-DATA-191",
                f"{where}.{key} marks what to train on in a way that is not supported",
                place=place,
                fix='Write "train": true or false in the message',
            )
    return next(iter(marks.values()), None) if role == "assistant" else None


def _flag(value: Any, place: str, where: str) -> bool:
    """Read true, false, 1 or 0."""
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise wrong("E-DATA-106", f"{where} is {kind(value)}; expected true or false", place)


def _detail(value: Any, content: str, place: str, where: str) -> bool:
    """Read character ranges `{begin_offset, end_offset, train}`, both ends included, that agree on the whole message."""
    ranges = value if isinstance(value, list) else [value]
    reached, marks = 0, set()
    for i, part in enumerate(ranges):
        if not isinstance(part, dict) or not all(_is_count(part.get(key)) for key in ("begin_offset", "end_offset")):
            raise wrong("E-DATA-106", f"{where}[{i}] is no range with begin_offset, end_offset and train", place)
        marks.add(_flag(part.get("train"), place, f"{where}[{i}].train"))
        reached = part["end_offset"] + 1 if part["begin_offset"] <= reached else -1
        if reached < 0:
            break
    if len(marks) == 1 and reached >= len(content):
        return marks.pop()
    raise DataError(
        "E-DATA-191",
        f"{where} marks a part of the message; only whole messages are marked here",
        place=place,
        fix='Split the message into turns, or write "train": true or false in it',
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def refuse_verdict(row: dict[str, Any], place: str, columns: Mapping[str, str]) -> None:
    """Refuse a row that is one side of a preference, or that says it is not to be trained on.

    A column that the user mapped by name is meant to be trained on, and `rejected` may then stand beside it.
    """
    mapped = set(columns.values())
    sides = [] if any(_VERDICT.fullmatch(name) for name in mapped) else [key for key in row if _is_verdict(key, row[key])]
    sides += [key for key in _LABELS if key not in mapped and _is_false(row.get(key))]
    if sides:
        raise DataError(
            "E-DATA-190",
            f'"{sides[0]}": this is preference data, which holds bad answers too; only good ones can be trained on',
            place=place,
            fix="Keep only rows with good answers, or map them, such as --columns prompt=prompt,completion=chosen",
        )
    for key in (*FLAGS, "weight"):
        value = row.get(key)
        if key not in mapped and isinstance(value, bool | int | float) and value == 0:
            raise DataError(
                "E-DATA-191",
                f'"{key}" of the row is {str(value).lower()}: none of it is to be trained on',
                place=place,
                fix="Leave the row out",
            )


def _is_verdict(key: str, value: Any) -> bool:
    """Tell the text or messages of one side of a preference, or a flag that speaks against the row."""
    found = _VERDICT.fullmatch(key)
    if not found or value in EMPTY:
        return False
    return value is (found[1].lower() == "rejected") if isinstance(value, bool) else True


def _is_false(value: Any) -> bool:
    return value is False or (isinstance(value, str) and value.strip().lower() == "false")


def refuse_templated(text: str, place: str, where: str, *, is_whole: bool) -> None:
    """Refuse a text in which a chat template's marks are spelled out; they would be trained on as characters.

    A text that merely speaks of such a mark is fine: it takes an opening mark at the beginning or two marks of one
    template, and where `is_whole` is False (the field is one turn, in which a user may well write marks) it takes
    both. A whole text may not end with an end mark either.
    """
    if "<" not in text and "[" not in text:
        return
    opening = _OPENING.match(text)
    has_two = any(len(set(marks.findall(text))) > 1 for marks in _MARKS)
    end = _END.search(text) if is_whole else None
    if not ((opening or has_two or end) if is_whole else (opening and has_two)):
        return
    mark = opening[1] if opening else end[1] if end else next(m[0] for m in (marks.search(text) for marks in _MARKS) if m)
    raise DataError(
        "E-DATA-192",
        f'{where} holds "{mark}": a chat template was applied to it, and its marks would be trained on as plain characters',
        place=place,
        fix='Write the turns as {"messages": [...]}, without marks; the template of the model is applied in training',
    )
