"""What `lorakeet check` finds out: every row read, encoded and proven, and the figures a person wants to see.

data in: Conversations, tokenizer, template → out: CheckReport. Rows are taken as they come and not kept, so memory
stays flat. How a report looks is show.py's business.
"""

import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lorakeet.checking.languages import count_scripts, guess_language
from lorakeet.data.conversation import Conversation, Example
from lorakeet.data.encode import Learn, Truncation
from lorakeet.data.encode_all import encode_stream
from lorakeet.data.formats import Notes
from lorakeet.data.pack import fill_rows, packing_stats
from lorakeet.data.split import Repeats, content_hash
from lorakeet.data.templates.template import Template
from lorakeet.data.tokenizer import Tokenizer
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
class CheckReport:
    """The figures of one check."""

    template: str
    learn: str
    formats: dict[str, str]
    notes: dict[str, int]
    num_rows: int = 0
    num_usable: int = 0
    num_tokens: int = 0
    num_supervised_tokens: int = 0
    num_dropped: int = 0
    num_truncated: int = 0
    lengths: Lengths | None = None
    truncation_cost: list[dict[str, int]] = field(default_factory=list)
    """For some limits: rows whose answers would be cut, and their tokens beyond the limit."""
    suggested_max_length: int = 0
    packing_waste: float = 0.0
    """Share of empty room when rows of the suggested length are filled best-fit."""
    duplicates: Repeats = field(default_factory=lambda: Repeats(0, ()))
    control_text_rows: int = 0
    """Rows whose content names control tokens; they stay text."""
    control_text_place: str = ""
    longest_rows: list[tuple[str, int]] = field(default_factory=list)
    shortest_rows: list[tuple[str, int]] = field(default_factory=list)
    languages: dict[str, int] = field(default_factory=dict)
    """Rows by language."""
    scripts: dict[str, float] = field(default_factory=dict)
    """Share of letters by script."""
    cost: dict[str, float] | None = None
    """What a run is predicted to take, filled in by whoever can run the model: seconds_per_epoch and its
    parts, tokens_per_second, peak_memory_bytes."""

    def to_dict(self) -> dict[str, Any]:
        """Write the report as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Shown:
    """A row that is to be shown."""

    conversation: Conversation
    example: Example


@dataclass
class _Tally:
    """What is remembered of the rows that have passed: some twenty bytes each, so that large files fit."""

    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    needed: "array[int]" = field(default_factory=lambda: array("I"))
    """Length of each row up to its last answer."""
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    files: dict[str, int] = field(default_factory=dict)
    file_of: "array[int]" = field(default_factory=lambda: array("I"))
    line_of: "array[int]" = field(default_factory=lambda: array("I"))
    supervised: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    control_rows: int = 0
    control_place: str = ""

    def add(self, conversation: Conversation, example: Example, tokenizer: Tokenizer) -> None:
        """Remember one row."""
        self.lengths.append(len(example.input_ids))
        self.needed.append(example.spans[-1][1])
        self.supervised += example.num_supervised_tokens
        self.hashes.append(int.from_bytes(content_hash(conversation)[:8], "little"))
        file, _, line = conversation.place.rpartition(":")
        self.file_of.append(self.files.setdefault(file, len(self.files)))
        self.line_of.append(int(line) if line.isdecimal() else 0)
        text = conversation.text or "\n".join(message.content for message in conversation.messages)
        scripts = count_scripts(text)
        self.scripts.update(scripts)
        self.languages[guess_language(text, scripts)] += 1
        if tokenizer.control_pattern.search(text):
            self.control_rows += 1
            self.control_place = self.control_place or conversation.place

    def place(self, row: int) -> str:
        """Say where a row came from."""
        return f"{list(self.files)[self.file_of[row]]}:{self.line_of[row]}"

    def extremes(self, *, longest: bool) -> list[tuple[str, int]]:
        """List the longest or the shortest rows."""
        sign = -1 if longest else 1
        rows = heapq.nsmallest(_NUM_EXTREMES, range(len(self.lengths)), key=lambda row: (sign * self.lengths[row], row))
        return [(self.place(row), self.lengths[row]) for row in rows]

    def duplicates(self) -> Repeats:
        """Find the rows that repeat an earlier one."""
        import numpy

        hashes = numpy.frombuffer(self.hashes, dtype=numpy.uint64)
        _, first, group = numpy.unique(hashes, return_index=True, return_inverse=True)
        earlier = first[group.reshape(-1)]
        repeats = numpy.flatnonzero(earlier != numpy.arange(len(hashes)))
        pairs = [(self.place(row), self.place(earlier[row])) for row in repeats[:_NUM_EXTREMES].tolist()]
        return Repeats(len(repeats), tuple(pairs))


def check(
    rows: Iterable[Conversation],
    tokenizer: Tokenizer,
    template: Template,
    *,
    learn: Learn = "all",
    max_length: int | None = None,
    truncation: Truncation = "error",
    notes: Notes | None = None,
    num_examples: int = 3,
    row: str | None = None,
    num_processes: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[CheckReport, list[Shown]]:
    """Prove all rows and count; also return the rows to show: the first ones, or the one at `row` ("17" or "f:17").

    Raises DataError at the first row that is wrong, where nothing is usable, and where there is no such row to show.
    """
    tally = _Tally()
    shown: list[Shown] = []
    num_rows = num_dropped = num_truncated = 0
    options: dict[str, Any] = {"learn": learn, "max_length": max_length, "truncation": truncation}
    for conversation, example in encode_stream(rows, tokenizer, template, num_processes=num_processes, **options):
        num_rows += 1
        if on_progress is not None and num_rows % 256 == 0:
            on_progress(num_rows)
        if row is None and example is not None and len(shown) < num_examples:
            shown.append(Shown(conversation, example))
        if row is not None and _is_at(conversation.place, row):
            shown.append(Shown(conversation, example or Example([], (), conversation.place)))
        if example is None:
            num_dropped += 1
            continue
        num_truncated += example.num_cut > 0
        tally.add(conversation, example, tokenizer)
    if not tally.lengths:
        raise DataError("E-DATA-28", f"0 of {num_rows} usable: every row was dropped", fix="Raise --max-length")
    if row is not None and not shown:
        raise DataError("E-DATA-118", f"no row begins at {row}", place="--row", fix="Give the line a row begins at")
    notes = notes or Notes()
    report = CheckReport(template.name, learn, dict(notes.formats), dict(notes.counts))
    report.num_rows, report.num_dropped, report.num_truncated = num_rows, num_dropped, num_truncated
    _fill(report, tally)
    return report, shown


def _is_at(place: str, row: str) -> bool:
    return place == row or place.rsplit(":", 1)[-1] == row or place.endswith("/" + row)


def _fill(report: CheckReport, tally: _Tally) -> None:
    lengths = tally.lengths.tolist()
    report.num_usable, report.num_tokens = len(lengths), sum(lengths)
    report.num_supervised_tokens = tally.supervised
    report.lengths = measure(lengths)
    report.suggested_max_length = suggest_max_length(tally.needed)
    report.truncation_cost = [_cost_of(tally.needed, limit) for limit in _limits(report.suggested_max_length)]
    limit = max(report.suggested_max_length, 1)
    fitting = [min(length, limit) for length in lengths]
    report.packing_waste = packing_stats(fitting, fill_rows(fitting, limit), limit).waste
    report.duplicates = tally.duplicates()
    report.control_text_rows, report.control_text_place = tally.control_rows, tally.control_place
    report.longest_rows, report.shortest_rows = tally.extremes(longest=True), tally.extremes(longest=False)
    report.languages = dict(tally.languages.most_common())
    letters = sum(tally.scripts.values()) or 1
    report.scripts = {name: count / letters for name, count in tally.scripts.most_common()}


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
    """Suggest a limit: all rows where that costs at most half as much again as 99.5 % of them, else those."""
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
