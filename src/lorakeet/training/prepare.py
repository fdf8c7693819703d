"""From a run's configuration to rows that are ready to learn from.

data in: the `data` section of a configuration, a tokenizer and its template → out: encoded, proven examples, and
the conversations that are kept apart for evaluation. Used by training and, for the held-out rows, by evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lorakeet.config import RunConfig
from lorakeet.data.conversation import Conversation, Example
from lorakeet.data.encode import encode_many, fit_length
from lorakeet.data.prove import prove
from lorakeet.data.read import read_conversations
from lorakeet.data.split import hold_out
from lorakeet.data.template import Template
from lorakeet.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class PreparedData:
    """Rows ready for training, and those kept apart."""

    train: list[Example]
    held_out: list[Example]
    held_out_conversations: list[Conversation]


def prepare_data(config: RunConfig, tokenizer: Tokenizer, template: Template, longest: int) -> PreparedData:
    """Read, split, encode and prove every row; `longest` is the model's own limit in tokens."""
    rows, held_out = read_rows(config)
    max_length = min(config.training_config.max_length or longest, longest)
    return PreparedData(
        train=_encode_rows(rows, config, tokenizer, template, max_length),
        held_out=_encode_rows(held_out, config, tokenizer, template, max_length),
        held_out_conversations=held_out,
    )


def read_rows(config: RunConfig) -> tuple[list[Conversation], list[Conversation]]:
    """Read a run's training and held-out conversations; the same ones each time, while the files are the same."""
    data = config.data

    def read(sources: list[str], split: str) -> list[Conversation]:
        found = []
        for source in sources:
            if source == "demo":
                from lorakeet.embedded import toolcalls

                found += toolcalls.training_conversations() if split == "train" else toolcalls.held_out_conversations()
            else:
                found += read_conversations(source, format=data.format, columns=data.columns, roles=data.roles)
        return found

    rows = read(data.train, "train")
    if data.eval is not None:
        return rows, read(data.eval, "eval")
    if data.train == ["demo"]:
        return rows, read(["demo"], "eval")
    return hold_out(rows, data.eval_fraction, config.training_config.seed)


def _encode_rows(
    rows: Sequence[Conversation], config: RunConfig, tokenizer: Tokenizer, template: Template, max_length: int
) -> list[Example]:
    """Encode rows, fit them into max_length, and prove each one."""
    data = config.data
    examples = []
    for row, example in zip(rows, encode_many(rows, tokenizer, template, learn=data.learn), strict=True):
        fitted = fit_length(example, max_length, data.truncation, bos_id=tokenizer.bos_id)
        if fitted is not None:
            prove(row, fitted, tokenizer, template, learn=data.learn)
            examples.append(fitted)
    return examples
