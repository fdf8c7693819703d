"""From a run's configuration to rows that are ready to train on, for `train`, `check` and evaluation alike.

data in: a RunConfig, a tokenizer and its template → out: PreparedData, encoded and proven examples with what was noticed
on the way. No model, no tensors.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lorakeet.config import RunConfig
from lorakeet.data.conversation import Conversation, Example, split_reasoning, with_system_prompt
from lorakeet.data.encode import EncodeOptions
from lorakeet.data.encode_all import EncodedRows, encode_rows
from lorakeet.data.formats import Notes
from lorakeet.data.read import OnBadRow, find_files, read_conversations, stop_at_first
from lorakeet.data.split import Repeats, find_duplicates, find_overlap, hold_out, refuse_overlap
from lorakeet.data.templates.habits import template_notes
from lorakeet.data.templates.template import Template
from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import ConfigError, DataError, ModelError
from lorakeet.files.cache import cache_dir
from lorakeet.formatting import count

logger = logging.getLogger(__name__)

MOST_HELD_OUT = 200
"""Rows held out if the user names none; more cost time at every evaluation and say little more."""

DEMO = Path(__file__).parents[1] / "demo_task"
"""Where the rows lie that the source "demo" names; tools/demo_rows generates them."""

Visit = Callable[[Conversation, list[Example]], None]


@dataclass(kw_only=True)
class Findings:
    """What a person should know about the training rows, though none of it is an error."""

    formats: dict[str, str] = field(default_factory=dict)
    """Row format by file."""
    notes: dict[str, int] = field(default_factory=dict)
    """What the reader accepted, and how often."""
    num_dropped: int = 0
    """Rows that the truncation policy dropped."""
    num_truncated: int = 0
    """Rows that lost tokens at the left."""
    duplicates: Repeats = field(default_factory=lambda: Repeats(0, ()))
    control_text_rows: int = 0
    """Rows whose content names control tokens; they stay text."""
    control_text_place: str = ""

    def lines(self) -> list[str]:
        """Return the findings as text, one a line."""
        lines = [f"format {kind}: {file}" for file, kind in self.formats.items()]
        lines += [f"note: {text} ({count})" for text, count in self.notes.items()]
        if self.num_truncated or self.num_dropped:
            lines.append(f"truncation: {count(self.num_truncated, 'row')} shortened, {self.num_dropped:,} dropped")
        if self.duplicates.count:
            repeats = "".join(f"; {place} repeats {earlier}" for place, earlier in self.duplicates.examples[:2])
            lines.append(f"duplicates: {self.duplicates.count:,}{repeats}")
        if self.control_text_rows:
            rows, place = self.control_text_rows, self.control_text_place
            lines.append(f"control tokens in content: {count(rows, 'row')}, kept as text, first at {place}")
        return lines


@dataclass(frozen=True)
class PreparedData:
    """Rows ready for training, and those held out."""

    train: EncodedRows
    held_out: list[Example]
    held_out_rows: list[Conversation]
    """The conversations behind `held_out`."""
    system: str | None
    """The system prompt that all training rows share, which a chat with the run should start with too."""
    findings: Findings = field(default_factory=Findings)
    """What was noticed about the rows of `data.train`, the part of them that is held out included."""


def prepare_data(
    config: RunConfig,
    tokenizer: Tokenizer,
    template: Template,
    longest: int | None,
    on_progress: Callable[[int, int], None] | None = None,
    visit: Visit | None = None,
    on_bad_row: OnBadRow = stop_at_first,
) -> PreparedData:
    """Read, split, encode and prove every row.

    Args:
        longest: the model's own limit in tokens, None if it is unknown.
        on_progress: called with (rows done, rows in all).
        visit: called with every row of `data.train`, in order, and its examples: one, or one for each answer, or none if
            the row was dropped. This is how a report sees the rows, which are not kept.
        on_bad_row: called with the error of each row that cannot be used; if it raises nothing, the others follow.
    Raises: ConfigError E-CFG-44 for a max_length beyond the model's limit, DataError for a bad row.
    """
    notes = Notes()
    template = template.on(config.data.date)
    rows = _read(config.data.train, config, "train", notes, on_bad_row)
    train_rows, held_out_rows = _split(rows, config, on_bad_row)

    train = _encode(train_rows, config, tokenizer, template, longest, on_progress, on_bad_row)
    held_out = _encode(held_out_rows, config, tokenizer, template, longest, on_progress, on_bad_row)
    by_row: dict[int, list[Example]] = {id(row): [] for row in rows}
    for part, encoded in ((train_rows, train), (held_out_rows, held_out)):
        for index, example in zip(encoded.kept, encoded.examples, strict=True):
            by_row.setdefault(id(part[index]), []).append(example)
    findings = _find(rows, [by_row[id(row)] for row in rows], tokenizer, template, notes)
    findings.num_dropped = train.num_dropped + (held_out.num_dropped if config.data.eval is None else 0)
    if visit is not None:
        for row in rows:
            visit(row, by_row[id(row)])
    kept = [held_out_rows[index] for index in dict.fromkeys(held_out.kept)]
    return PreparedData(train, held_out.examples, kept, _common_system_prompt(train_rows), findings)


def prepare_held_out(
    config: RunConfig, tokenizer: Tokenizer, template: Template, longest: int | None
) -> tuple[list[Conversation], list[Example]]:
    """Read a run's held-out rows as `prepare_data` does, and encode them. Raises: as `prepare_data`."""
    rows = read_rows(config)[1]
    encoded = _encode(rows, config, tokenizer, template.on(config.data.date), longest)
    return [rows[index] for index in dict.fromkeys(encoded.kept)], encoded.examples


def _encode(
    rows: list[Conversation],
    config: RunConfig,
    tokenizer: Tokenizer,
    template: Template,
    longest: int | None,
    on_progress: Callable[[int, int], None] | None = None,
    on_bad_row: OnBadRow = stop_at_first,
) -> EncodedRows:
    options = EncodeOptions(config.data.learn, _max_length(config, longest), config.data.truncation)
    if not rows:
        return EncodedRows([], [], 0)
    cache = cache_dir() / "rows"
    encoded = encode_rows(rows, tokenizer, template, options, cache_dir=cache, on_progress=on_progress, on_bad_row=on_bad_row)
    _require_embedded(encoded.examples, tokenizer)
    return encoded


def _require_embedded(examples: Iterable[Example], tokenizer: Tokenizer) -> None:
    """Refuse rows with a token that the model has no embedding of."""
    if not tokenizer.exceeds_embedding:  # as with nearly all models, whose rows need not be looked through then
        return
    size = tokenizer.num_embeddings
    assert size is not None
    for example in examples:
        if (largest := max(example.input_ids)) >= size:
            raise ModelError(
                "E-MODEL-123",
                f"token {largest}, {tokenizer.decode([largest])!r}, has no embedding: the model has {size:,}, the row at "
                f"{example.place} needs it",
                place=tokenizer.place,
                fix="Take the tokenizer that belongs to these weights: download the model again",
            )


def _max_length(config: RunConfig, longest: int | None) -> int | None:
    max_length = config.training_config.max_length or longest
    if max_length is not None and longest is not None and max_length > longest:
        raise ConfigError(
            "E-CFG-44",
            f"is {max_length}; the model's limit is {longest} tokens",
            place="training_config.max_length",
            fix=f"Use {longest} at most, or leave it out",
        )
    return max_length


def _find(
    rows: list[Conversation], examples: list[list[Example]], tokenizer: Tokenizer, template: Template, notes: Notes
) -> Findings:
    control = [row.place for row in rows if tokenizer.control_pattern.search(_text_of(row))]
    num_apart = sum(any(one.place != row.place for one in found) for row, found in zip(rows, examples, strict=True))
    return Findings(
        formats=notes.formats,
        notes=notes.counts | template_notes(template, rows, num_apart),
        num_truncated=sum(any(one.num_cut for one in found) for found in examples),
        duplicates=find_duplicates(rows),
        control_text_rows=len(control),
        control_text_place=control[0] if control else "",
    )


def _text_of(row: Conversation) -> str:
    """Join what a row says, without the marks around reasoning, which do become control tokens."""
    parts = [split_reasoning(m.content) if m.role == "assistant" else ("", m.content) for m in row.messages]
    return row.text or "\n".join(text for part in parts for text in part)


def require_sources(config: RunConfig) -> None:
    """Raise DataError if data that is named is not there; nothing is read."""
    for source in [*config.data.train, *(config.data.eval or [])]:
        if source != "demo":
            find_files(source)


def read_rows(config: RunConfig) -> tuple[list[Conversation], list[Conversation]]:
    """Read a run's training and held-out conversations; the same ones each time, while the files are the same."""
    return _split(_read(config.data.train, config, "train"), config)


def read_held_out(sources: list[str], config: RunConfig, on_bad_row: OnBadRow = stop_at_first) -> list[Conversation]:
    """Read every row of the named sources; "demo" names the demo's held-out rows."""
    return _read(sources, config, "held_out", on_bad_row=on_bad_row)


def trained_on(rows: list[Conversation], config: RunConfig) -> Repeats | None:
    """Return which of `rows` also stand in a run's training data; None if that data cannot be read any more."""
    try:
        train = read_rows(config)[0]
    except DataError as error:
        logger.warning("Whether these rows were trained on is not known, since the training data cannot be read: %s", error)
        return None
    return find_overlap(train, rows)


def demo_rows(split: Literal["train", "held_out"]) -> list[Conversation]:
    """Return the demo's rows to train on, or those to score on."""
    rows = read_conversations(DEMO / f"{split}.jsonl.gz")
    return [replace(row, place=f"demo:{split}:{number}") for number, row in enumerate(rows, 1)]


def _split(
    rows: list[Conversation], config: RunConfig, on_bad_row: OnBadRow = stop_at_first
) -> tuple[list[Conversation], list[Conversation]]:
    """Return the rows to train on and the held-out ones: those that the run names, the demo's own, or a part of `rows`."""
    data = config.data
    if data.eval is not None:
        held_out = read_held_out(data.eval, config, on_bad_row)
        refuse_overlap(rows, held_out)
        return rows, held_out
    if data.train == ["demo"]:
        return rows, read_held_out(["demo"], config)
    fraction = min(data.eval_fraction, MOST_HELD_OUT / len(rows))
    if len(rows) * fraction < 1:
        return rows, []
    return hold_out(rows, fraction, config.training_config.seed)


def _read(
    sources: list[str],
    config: RunConfig,
    split: Literal["train", "held_out"],
    notes: Notes | None = None,
    on_bad_row: OnBadRow = stop_at_first,
) -> list[Conversation]:
    """Read all sources in turn, with the run's system prompt put in its place."""
    data = config.data
    found: list[Conversation] = []
    for source in sources:
        rows: Iterable[Conversation]
        if source == "demo":
            rows = demo_rows(split)
        else:
            rows = read_conversations(
                source,
                format=data.format,
                columns=data.columns,
                roles=data.roles,
                merge_turns=data.merge_turns,
                reasoning=data.reasoning,
                notes=notes,
                on_bad_row=on_bad_row,
            )
        found += rows if data.system is None else (with_system_prompt(r, data.system, replace_existing=True) for r in rows)
    return found


def _common_system_prompt(rows: list[Conversation]) -> str | None:
    """Return the system prompt that every row opens with, if it is one and the same."""
    openings = {(row.messages[0].role, row.messages[0].content) if row.messages else None for row in rows}
    only = openings.pop() if len(openings) == 1 else None
    return only[1] if only is not None and only[0] == "system" else None
