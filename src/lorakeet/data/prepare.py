"""From a run's configuration to rows that are ready to learn from.

data in: the `data` section of a configuration, a tokenizer and its template → out: encoded, proven examples, and
the conversations that are kept apart for evaluation. Used by training and, for the held-out rows, by evaluation.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lorakeet.config import RunConfig
from lorakeet.data.conversation import Conversation, Example, with_system_prompt
from lorakeet.data.encode_all import EncodedRows, encode_rows
from lorakeet.data.read import read_conversations
from lorakeet.data.split import hold_out, refuse_overlap
from lorakeet.data.templates.template import Template
from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import ConfigError
from lorakeet.files.cache import cache_dir

MOST_HELD_OUT = 200
"""Rows held out where the user names none; more cost time at every evaluation and tell little more."""

DEMO = Path(__file__).parents[1] / "demo_task"
"""Where the rows lie that the source "demo" names; tools/demo_rows generates them."""


@dataclass(frozen=True)
class PreparedData:
    """Rows ready for training, and those kept apart."""

    train: EncodedRows
    held_out: list[Example]
    held_out_rows: list[Conversation]
    """The conversations behind `held_out`."""
    system: str | None
    """The system prompt that all training rows share, which a chat with the run should open with too."""


def prepare_data(
    config: RunConfig,
    tokenizer: Tokenizer,
    template: Template,
    longest: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> PreparedData:
    """Read, split, encode and prove every row.

    Args:
        longest: the model's own limit in tokens.
        on_progress: told (rows done, rows in all).
    Raises: ConfigError E-CFG-44 for a max_length beyond the model's limit, DataError for a bad row.
    """
    max_length = config.training_config.max_length or longest
    if max_length > longest:
        raise ConfigError(
            "E-CFG-44",
            f"is {max_length}; the model's limit is {longest} tokens",
            place="training_config.max_length",
            fix=f"Use {longest} at most, or leave it out",
        )
    rows, held_out = read_rows(config)

    def encode(part: list[Conversation]) -> EncodedRows:
        data, cache = config.data, cache_dir() / "rows"
        return encode_rows(
            part,
            tokenizer,
            template,
            learn=data.learn,
            max_length=max_length,
            truncation=data.truncation,
            cache_dir=cache,
            on_progress=on_progress,
        )

    examples = encode(held_out).examples if held_out else []
    places = {example.place for example in examples}
    kept = [row for row in held_out if row.place in places]
    return PreparedData(encode(rows), examples, kept, _common_system_prompt(rows))


def read_rows(config: RunConfig) -> tuple[list[Conversation], list[Conversation]]:
    """Read a run's training and held-out conversations; the same ones each time, while the files are the same."""
    data = config.data
    rows = [row for source in data.train for row in _read(source, config, "train")]
    if data.eval is not None:
        held_out = read_held_out(data.eval, config)
        refuse_overlap(rows, held_out)
        return rows, held_out
    if data.train == ["demo"]:
        return rows, read_held_out(["demo"], config)
    fraction = min(data.eval_fraction, MOST_HELD_OUT / len(rows))
    if len(rows) * fraction < 1:
        return rows, []
    return hold_out(rows, fraction, config.training_config.seed)


def read_held_out(sources: list[str], config: RunConfig) -> list[Conversation]:
    """Read every row of the named sources; "demo" names the demo's held-out rows."""
    return [row for source in sources for row in _read(source, config, "held_out")]


def demo_rows(split: Literal["train", "held_out"]) -> list[Conversation]:
    """Return the demo's rows to train on, or those to score on."""
    rows = read_conversations(DEMO / f"{split}.jsonl.gz")
    return [replace(row, place=f"demo:{split}:{number}") for number, row in enumerate(rows, 1)]


def _read(source: str, config: RunConfig, split: Literal["train", "held_out"]) -> Iterable[Conversation]:
    data = config.data
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
        )
    return rows if data.system is None else (with_system_prompt(row, data.system, replace_existing=True) for row in rows)


def _common_system_prompt(rows: list[Conversation]) -> str | None:
    """Return the system prompt that every row opens with, if it is one and the same."""
    openings = {(row.messages[0].role, row.messages[0].content) if row.messages else None for row in rows}
    only = openings.pop() if len(openings) == 1 else None
    return only[1] if only is not None and only[0] == "system" else None
