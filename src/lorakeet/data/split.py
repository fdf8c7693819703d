"""Hold rows back for evaluation, and find rows that occur twice or on both sides.

data in: Conversations → out: two lists, or counts. Pure functions of the rows' content and a seed.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from lorakeet.data.conversation import Conversation
from lorakeet.errors import DataError


def content_hash(conversation: Conversation) -> bytes:
    """Hash what a row says, wherever it stands and however it was written."""
    said = [[m.role, m.content, m.name, list(m.tool_calls)] for m in conversation.messages]
    text = json.dumps([said, list(conversation.tools), conversation.text], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def hold_out(rows: Sequence[Conversation], fraction: float, seed: int) -> tuple[list[Conversation], list[Conversation]]:
    """Split into training and held-out rows; equal rows always land on the same side.

    The choice depends on each row's content and the seed only, so adding rows moves few others.
    """
    wanted = round(len(rows) * fraction)
    if fraction > 0 and len(rows) > 1:
        wanted = min(max(wanted, 1), len(rows) - 1)
    groups: dict[bytes, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(content_hash(row), []).append(index)
    held: set[int] = set()
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"{seed}/".encode() + key).digest()):
        if len(held) + len(groups[key]) <= wanted:
            held.update(groups[key])
        if len(held) == wanted:
            break
    train = [row for index, row in enumerate(rows) if index not in held]
    return train, [row for index, row in enumerate(rows) if index in held]


@dataclass(frozen=True)
class Repeats:
    """Rows that say the same as an earlier one."""

    count: int
    examples: tuple[tuple[str, str], ...]
    """The first few, as (place, place of the earlier one)."""

    def to_dict(self) -> dict[str, object]:
        """Write as plain JSON values."""
        return asdict(self)


def find_duplicates(rows: Iterable[Conversation]) -> Repeats:
    """Count the rows that repeat an earlier one word for word."""
    return _repeats(rows, {})


def find_overlap(train: Iterable[Conversation], held_out: Iterable[Conversation]) -> Repeats:
    """Count the held-out rows that training sees too."""
    seen: dict[bytes, str] = {}
    for row in train:
        seen.setdefault(content_hash(row), row.place)
    return _repeats(held_out, seen, grows=False)


def refuse_overlap(train: Iterable[Conversation], held_out: Iterable[Conversation]) -> None:
    """Refuse rows that both training and evaluation would see. Raises DataError naming the first."""
    overlap = find_overlap(train, held_out)
    if overlap.count:
        place, earlier = overlap.examples[0]
        raise DataError(
            "E-DATA-29",
            f"{overlap.count} shared rows: training and evaluation data overlap, first with {earlier}",
            place=place,
            fix="Remove them from one of the two",
        )


def _repeats(rows: Iterable[Conversation], seen: dict[bytes, str], *, grows: bool = True) -> Repeats:
    count = 0
    examples: list[tuple[str, str]] = []
    for row in rows:
        key = content_hash(row)
        if key in seen:
            count += 1
            if len(examples) < 5:
                examples.append((row.place, seen[key]))
        elif grows:
            seen[key] = row.place
    return Repeats(count, tuple(examples))
