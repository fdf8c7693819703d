"""Rows that say the same, nearly the same, or give different answers to one prompt.

data in: Conversations as they pass by → out: their places. Rows are not kept: a hash of each prompt and answer, and of the
first 200,000 rows the smallest hashes of their word triples. Exact duplicates are counted in data/split.py.

Near duplicates: Jaccard similarity of word triples, estimated from the K smallest hashes of both rows. Source: Broder 1997,
On the resemblance and containment of documents.
"""

import hashlib
import json
import re
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from lorakeet.data.conversation import Conversation, Message

SIMILAR = 0.8
"""Share of word triples that two near duplicates have in common."""
_KEPT = 32  # hashes of a row
_TRIED = 4  # the smallest of them, by which rows meet; 0.8 alike, two rows share one of them almost surely
_MOST_MET = 50  # rows that share a hash with many others share what all say
_FEWEST = 6  # word triples; shorter rows are alike by chance
_MOST_GROUPS = 100
_MOST_SHOWN = 10  # rows of a group
_MOST_COMPARED = 200_000  # rows; their hashes take about 1 kB each


@dataclass
class Duplicates:
    """Sees every row once."""

    place_of: Callable[[int], str]
    """Returns where a row stands, by its number among those added."""
    near: bool = True
    """Whether near duplicates are looked for, too."""
    num_near: int = 0
    prompts: "array[int]" = field(default_factory=lambda: array("Q"))
    answers: "array[int]" = field(default_factory=lambda: array("Q"))
    _near_pairs: list[tuple[int, int]] = field(default_factory=list)
    _sketches: "array[int]" = field(default_factory=lambda: array("I"))
    _ends: "array[int]" = field(default_factory=lambda: array("I"))
    """Where in `_sketches` each row's sketch ends."""
    _met: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, conversation: Conversation) -> None:
        """Remember one row."""
        prompt, answer = _split(conversation)
        self.prompts.append(prompt)
        self.answers.append(answer)
        if self.near and len(self.prompts) <= _MOST_COMPARED:
            self._sketches.extend(_sketch(conversation))
            self._ends.append(len(self._sketches))
            self._meet(len(self.prompts) - 1)

    def _sketch_of(self, row: int) -> "array[int]":
        return self._sketches[self._ends[row - 1] if row else 0 : self._ends[row]]

    def _meet(self, row: int) -> None:
        """Compare a row with those before it that share one of its smallest hashes."""
        sketch = self._sketch_of(row)
        others = sorted({other for key in sketch[:_TRIED] for other in self._met.get(key, ())})
        if any(self._is_same(row, other) for other in others):
            return
        if alike := [other for other in others if _similarity(sketch, self._sketch_of(other)) >= SIMILAR]:
            self.num_near += 1
            if len(self._near_pairs) < _MOST_GROUPS:
                self._near_pairs.append((row, alike[0]))
        for key in sketch[:_TRIED]:
            if len(self._met[key]) < _MOST_MET:
                self._met[key].append(row)

    def _is_same(self, row: int, other: int) -> bool:
        return self.prompts[row] == self.prompts[other] and self.answers[row] == self.answers[other]

    def near_duplicates(self) -> list[tuple[str, str]]:
        """Return the first near duplicates, as (place, place of the earlier one)."""
        return [(self.place_of(row), self.place_of(earlier)) for row, earlier in self._near_pairs]

    def conflicts(self) -> tuple[int, list[list[str]]]:
        """Return how many rows share their prompt with a row of another answer, and the places of the first groups."""
        rows_of: dict[int, list[int]] = defaultdict(list)
        answers_of: dict[int, int] = {}
        conflicting = {p for p, a in zip(self.prompts, self.answers, strict=True) if answers_of.setdefault(p, a) != a}
        for row, prompt in enumerate(self.prompts):
            if prompt in conflicting:
                rows_of[prompt].append(row)
        groups = list(rows_of.values())
        shown = [[self.place_of(row) for row in rows[:_MOST_SHOWN]] for rows in groups[:_MOST_GROUPS]]
        return sum(map(len, groups)), shown


def _split(conversation: Conversation) -> tuple[int, int]:
    """Hash what comes before the last assistant turn, and that turn; a row without one is all prompt."""
    messages = conversation.messages
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=len(messages))
    before = [_said(message) for message in messages[:last]]
    prompt = [before, list(conversation.tools), conversation.text]
    return _hash(prompt), _hash([_said(message) for message in messages[last:]])


def _said(message: Message) -> list[object]:
    return [message.role, message.content.strip(), message.name, list(message.tool_calls)]


def _hash(value: object) -> int:
    text = json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _sketch(conversation: Conversation) -> "array[int]":
    """Return the smallest hashes of a row's word triples; what the system prompt says, many rows share."""
    said = [message.content for message in conversation.messages if message.role != "system"] or [conversation.text or ""]
    words = re.findall(r"\w+", " ".join(said).casefold())
    triples = {" ".join(words[i : i + 3]) for i in range(len(words) - 2)}
    if len(triples) < _FEWEST:
        return array("I")
    return array("I", sorted({zlib.crc32(triple.encode("utf-8", "surrogatepass")) for triple in triples})[:_KEPT])


def _similarity(one: "array[int]", other: "array[int]") -> float:
    """Estimate how many of both rows' triples both have."""
    union = sorted(set(one) | set(other))[:_KEPT]
    both = set(one) & set(other)
    return sum(value in both for value in union) / len(union) if union else 0.0
