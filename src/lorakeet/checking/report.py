"""What `lorakeet check` finds out: the figures that a person wants to see of rows that were read, encoded and proven.

data in: every row with its example, one at a time → out: CheckReport and the rows to show. Some twenty bytes are kept of a
row. How a report looks is show.py's business.
"""

import heapq
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lorakeet.checking.duplicates import Duplicates
from lorakeet.checking.languages import count_scripts, guess_language
from lorakeet.data.conversation import Conversation, Example
from lorakeet.data.pack import fill_rows, packing_stats
from lorakeet.data.prepare import Findings
from lorakeet.errors import DataError

_NUM_BINS = 12
_NUM_EXTREMES = 5


@dataclass(frozen=True)
class Lengths:
    """How long the rows are, in tokens."""

    shortest: int
    median: int
    mean: float
    p95: int
    p99: int
    longest: int
    histogram: list[tuple[int, int, int]]
    """(from, to inclusive, rows)."""


@dataclass
class CheckReport(Findings):
    """The figures of one check, with the findings of reading and encoding."""

    template: str
    learn: str
    num_rows: int = 0
    num_usable: int = 0
    num_tokens: int = 0
    num_supervised_tokens: int = 0
    lengths: Lengths | None = None
    truncation_cost: list[dict[str, int]] = field(default_factory=list)
    """For some limits: rows whose answers would be cut, and their tokens beyond the limit."""
    suggested_max_length: int = 0
    packing_waste: float = 0.0
    """Share of empty room when rows of the suggested length are filled best-fit."""
    longest_rows: list[tuple[str, int]] = field(default_factory=list)
    shortest_rows: list[tuple[str, int]] = field(default_factory=list)
    languages: dict[str, int] = field(default_factory=dict)
    """Rows by language."""
    scripts: dict[str, float] = field(default_factory=dict)
    """Share of letters by script."""
    num_near_duplicates: int = 0
    """Rows that say nearly what an earlier one says."""
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)
    """The first of them, as (place, place of the earlier one)."""
    num_conflicting: int = 0
    """Rows whose prompt has another answer elsewhere."""
    conflicts: list[list[str]] = field(default_factory=list)
    """The first groups of rows that share a prompt and not the answer."""
    cost: dict[str, float] | None = None
    """What the run is predicted to take, filled in by whoever can run the model: steps, seconds and their parts
    train_seconds and eval_seconds, tokens_per_second, peak_memory_bytes."""
    warnings: list[str] = field(default_factory=list)
    """What makes it likely that the run trains nothing, filled in by the same."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Shown:
    """A row that is to be shown."""

    conversation: Conversation
    example: Example


@dataclass
class Survey:
    """Sees every row once and keeps what the figures need; also the rows to show, the first ones or those at `row`."""

    num_examples: int = 3
    row: str | None = None
    """The row to show, as "17" or "file:17"."""
    shown: list[Shown] = field(default_factory=list)
    num_rows: int = 0
    supervised: int = 0
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    """Of each example; a row has one, or one for each answer."""
    needed: "array[int]" = field(default_factory=lambda: array("I"))
    """Length of each example up to its last answer."""
    row_of: "array[int]" = field(default_factory=lambda: array("I"))
    """Number of each example's row among those with examples."""
    files: dict[str, int] = field(default_factory=dict)
    file_of: "array[int]" = field(default_factory=lambda: array("I"))
    line_of: "array[int]" = field(default_factory=lambda: array("I"))
    languages: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    duplicates: Duplicates = field(init=False)

    def __post_init__(self) -> None:
        self.duplicates = Duplicates(self.place)

    def add(self, conversation: Conversation, examples: Sequence[Example]) -> None:
        """Count one row with its examples; it has none if it was dropped."""
        self.num_rows += 1
        is_wanted = len(self.shown) < self.num_examples if self.row is None else _is_at(conversation.place, self.row)
        if is_wanted and (examples or self.row is not None):
            self.shown += [Shown(conversation, one) for one in examples or [Example([], (), conversation.place)]]
        if not examples:
            return
        self.duplicates.add(conversation)
        file, _, line = conversation.place.rpartition(":")
        self.file_of.append(self.files.setdefault(file, len(self.files)))
        self.line_of.append(int(line) if line.isdecimal() else 0)
        for example in examples:
            self.lengths.append(len(example.input_ids))
            self.needed.append(example.spans[-1][1])
            self.row_of.append(len(self.file_of) - 1)
            self.supervised += example.num_supervised_tokens
        scripts = count_scripts(conversation.said)
        self.scripts.update(scripts)
        self.languages[guess_language(conversation.said, scripts)] += 1

    def place(self, row: int) -> str:
        """Return where a row came from."""
        return f"{list(self.files)[self.file_of[row]]}:{self.line_of[row]}"

    def extremes(self, *, longest: bool) -> list[tuple[str, int]]:
        """List the longest or the shortest rows."""
        sign = -1 if longest else 1
        rows = heapq.nsmallest(_NUM_EXTREMES, range(len(self.lengths)), key=lambda row: (sign * self.lengths[row], row))
        return [(self.place(self.row_of[row]), self.lengths[row]) for row in rows]

    def report(self, findings: Findings, *, template: str, learn: str) -> CheckReport:
        """Work out the figures. Raises DataError E-DATA-118 if there is no such row to show."""
        if self.row is not None and not self.shown:
            raise DataError("E-DATA-118", f"no row begins at {self.row}", place="--row", fix="Name the line a row begins at")
        lengths = self.lengths.tolist()
        limit = suggest_max_length(self.needed)
        fitting = [min(length, limit) for length in lengths]
        letters = sum(self.scripts.values()) or 1
        num_conflicting, conflicts = self.duplicates.conflicts()
        return CheckReport(
            template,
            learn,
            num_rows=self.num_rows,
            num_usable=len(self.file_of),
            num_tokens=sum(lengths),
            num_supervised_tokens=self.supervised,
            lengths=measure(lengths),
            truncation_cost=[_cost_of(self.needed, each) for each in _limits(limit)],
            suggested_max_length=limit,
            packing_waste=packing_stats(fitting, fill_rows(fitting, limit), limit).waste,
            longest_rows=self.extremes(longest=True),
            shortest_rows=self.extremes(longest=False),
            languages=dict(self.languages.most_common()),
            scripts={name: count / letters for name, count in self.scripts.most_common()},
            num_near_duplicates=self.duplicates.num_near,
            near_duplicates=self.duplicates.near_duplicates(),
            num_conflicting=num_conflicting,
            conflicts=conflicts,
            **vars(findings),
        )


def _is_at(place: str, row: str) -> bool:
    return place == row or place.rsplit(":", 1)[-1] == row or place.endswith("/" + row)


def measure(lengths: Sequence[int]) -> Lengths:
    """Describe how long rows are; percentiles are the smallest length that so many rows do not exceed."""
    ordered = sorted(lengths)

    def percentile(share: float) -> int:
        return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * share // 1) - 1).__int__())]

    shortest, longest = ordered[0], ordered[-1]
    width = -(-(longest - shortest + 1) // _NUM_BINS)
    counts = Counter((length - shortest) // width for length in ordered)
    histogram = [(shortest + i * width, shortest + (i + 1) * width - 1, counts[i]) for i in range(max(counts) + 1)]
    return Lengths(
        shortest, percentile(0.5), sum(ordered) / len(ordered), percentile(0.95), percentile(0.99), longest, histogram
    )


def suggest_max_length(needed: Sequence[int]) -> int:
    """Suggest a limit: all rows if that costs at most half as much again as 99.5 % of them, else those."""
    ordered = sorted(needed)
    most = ordered[min(len(ordered) - 1, int(len(ordered) * 0.995))]
    return _round_up(ordered[-1] if ordered[-1] <= 1.5 * most else most)


def _round_up(length: int) -> int:
    return -(-length // 64) * 64


def _limits(suggested: int) -> list[int]:
    return sorted({_round_up(max(64, int(suggested * share))) for share in (0.25, 0.5, 0.75, 1.0)})


def _cost_of(needed: Sequence[int], limit: int) -> dict[str, int]:
    beyond = [length - limit for length in needed if length > limit]
    return {"max_length": limit, "rows": len(beyond), "tokens": sum(beyond)}
