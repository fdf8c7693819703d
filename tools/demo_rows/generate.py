"""The rows of the demo, generated: src/lorakeet/demo_task/{train,held_out}.jsonl.gz.

    python -m tools.demo_rows.generate          # writes both files

data in: nothing (values.py and the phrasings) → out: JSON lines of `messages`, the same ones everywhere and always.
What the rows are for stands in lorakeet/demo_task/recipe.py; nothing here trains or scores.
"""

import datetime
import gzip
import json
import random
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from lorakeet.demo_task.recipe import SYSTEM
from tools.demo_rows import held_out_phrasings, training_phrasings
from tools.demo_rows.phrasings import Phrasings
from tools.demo_rows.values import ARTISTS, VALUES, Split, Value, words

DIRECTORY = Path(__file__).parents[2] / "src" / "lorakeet" / "demo_task"
"""Where the package keeps the rows."""

T = TypeVar("T")

TOOLS: dict[str, tuple[str, ...]] = {
    "set_reminder": ("text", "date", "time?"),
    "create_event": ("title", "date", "time", "minutes?"),
    "send_message": ("to", "message"),
    "send_money": ("to", "amount"),
    "set_timer": ("minutes",),
    "play_music": ("song", "artist?"),
    "get_weather": ("city", "date?"),
    "book_table": ("restaurant", "people", "date", "time"),
}
"""Arguments by tool, in the order of the answer; those with a question mark are optional."""

ROWS: dict[Split, tuple[int, int]] = {"train": (235, 380), "held_out": (24, 24)}
"""Rows for each tool, and rows that no tool serves."""

PHRASINGS: dict[Split, Phrasings] = {"train": training_phrasings.TRAIN, "held_out": held_out_phrasings.HELD_OUT}

SEEDS: dict[Split, int] = {"train": 20260314, "held_out": 20260315}


@dataclass(frozen=True, slots=True)
class Request:
    """One row and what it was made from."""

    template: str
    slots: dict[str, Value]
    """The values that fill the template."""
    text: str
    """What the user says."""
    call: dict[str, Any]
    """What the assistant answers."""


def jsonl(split: Split) -> str:
    """Return the rows of a split as JSON lines of `messages`, as `lorakeet train` reads them."""
    return "".join(json.dumps({"messages": _messages(request)}) + "\n" for request in requests(split))


def _messages(request: Request) -> list[dict[str, str]]:
    contents = {"system": SYSTEM, "user": request.text, "assistant": json.dumps(request.call)}
    return [{"role": role, "content": content} for role, content in contents.items()]


def write(split: Split, directory: Path = DIRECTORY) -> Path:
    """Write the rows of a split; the bytes hold no time and no name, so the same rows are the same file."""
    path = directory / f"{split}.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(split).encode(), compresslevel=9, mtime=0))
    return path


def requests(split: Split) -> list[Request]:
    """Return the rows of a split with what they were made from, in the order of the conversations."""
    writer = _Writer(split)
    per_tool, unserved = ROWS[split]
    rows = [row for tool in TOOLS for row in writer.write(tool, per_tool)] + writer.write(None, unserved)
    return writer.shuffled(rows)


class _Writer:
    """Words requests with one split's templates and values.

    Every choice comes from `random.Random.random`, the one method whose sequence Python promises to keep.
    """

    def __init__(self, split: Split) -> None:
        self._random = random.Random(SEEDS[split]).random
        self._phrasings = PHRASINGS[split]
        self._values = VALUES[split]
        self._decks: dict[str, list[Value]] = {slot: [] for slot in self._values}
        self._said: set[str] = set()

    def write(self, tool: str | None, count: int) -> list[Request]:
        """Word `count` different requests for a tool, using each of its templates about equally often."""
        templates = self._phrasings.templates[tool]
        rows: list[Request] = []
        while len(rows) < count:
            row = self._request(tool, templates[len(rows) % len(templates)])
            if row.text not in self._said:
                self._said.add(row.text)
                rows.append(row)
        return rows

    def shuffled(self, items: Iterable[T]) -> list[T]:
        """Return the items in random order."""
        return [item for _, item in sorted(((self._random(), item) for item in items), key=lambda pair: pair[0])]

    def _request(self, tool: str | None, template: str) -> Request:
        slots: dict[str, Value] = {}
        for _, slot, _, _ in string.Formatter().parse(template):
            if slot and slot != "artist":
                slots[slot] = self._deal(slot)
        if "{artist}" in template:
            slots["artist"] = ARTISTS[str(slots["song"])]
        text = template.format(**{slot: self._say(slot, value) for slot, value in slots.items()})
        if self._random() < 0.35:
            text = f"{self._pick(self._phrasings.openers)}, {text}"
        if self._random() < 0.15:
            text = f"{text}, {self._pick(self._phrasings.closers)}"
        return Request(template, slots, text, _call(tool, slots))

    def _deal(self, slot: str) -> Value:
        """Take the next value from the slot's shuffled deck, so that values recur as late as possible."""
        if not self._decks[slot]:
            self._decks[slot] = self.shuffled(self._values[slot])
        return self._decks[slot].pop()

    def _say(self, slot: str, value: Value) -> str:
        """Put a value into words, now and then after a moment's thought."""
        said = self._pick(ways_to_say(slot, value))
        if not isinstance(value, str) and self._random() < 0.1:
            return f"{self._pick(self._phrasings.fillers)} {said}"
        return said

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self._random() * len(choices))]


def ways_to_say(slot: str, value: Value) -> tuple[str, ...]:
    """Return the ways to say a value; a way that is listed twice is said twice as often."""
    if isinstance(value, datetime.date):
        month = _MONTHS[value.month - 1]
        return f"{month} {value.day}", f"{month} {_ordinal(value.day)}", f"the {_ordinal(value.day)} of {month}"
    if isinstance(value, datetime.time):
        hour, minute, half = _hour(value), f":{value.minute:02}" if value.minute else "", _half(value)
        part = "morning" if value.hour < 12 else "afternoon" if value.hour < 18 else "evening"
        return f"{hour}{minute} {half}", f"{hour}{minute} {half}", f"{hour}{minute} in the {part}"
    if slot == "amount":
        return f"${value}", f"${value}", f"{value} dollars"
    if slot == "people" and int(value) <= len(_SMALL_NUMBERS):
        return str(value), str(value), _SMALL_NUMBERS[int(value) - 1]
    return (str(value),)


# Not from the calendar module, whose names change with the locale.
_MONTHS = words("January, February, March, April, May, June, July, August, September, October, November, December")
_SMALL_NUMBERS = words("one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve")


def _hour(value: datetime.time) -> int:
    return (value.hour - 1) % 12 + 1


def _half(value: datetime.time) -> str:
    return "am" if value.hour < 12 else "pm"


def _ordinal(number: int) -> str:
    ending = "th" if number in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _call(tool: str | None, slots: dict[str, Value]) -> dict[str, Any]:
    """Return the tool call, its arguments in the order of TOOLS."""
    if tool is None:
        return {"tool": None}
    names = [name.rstrip("?") for name in TOOLS[tool]]
    return {"tool": tool, "arguments": {name: _argument(slots[name]) for name in names if name in slots}}


def _argument(value: Value) -> str | int | float:
    """Return a value as JSON has it: 2026-03-14, 3:00 pm, 12.75."""
    if isinstance(value, datetime.time):
        return f"{_hour(value)}:{value.minute:02} {_half(value)}"
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return value


if __name__ == "__main__":
    for each in SEEDS:
        print(write(each))
