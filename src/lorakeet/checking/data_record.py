"""RUN/data.json: what a run was trained on and how it was started, for whoever reads the run directory later.

data in: the prepared rows, passing by one at a time → out: one small JSON file with figures, what was proven, the first rows
with their masks, rows that share a prompt but not the answer, the command and the versions.
"""

import json
import shlex
import sys
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorakeet.checking.duplicates import Duplicates
from lorakeet.checking.report import Shown, measure
from lorakeet.checking.show import stretches
from lorakeet.data.conversation import Conversation, Example
from lorakeet.data.prepare import PreparedData
from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import redact
from lorakeet.files import durable
from lorakeet.formatting import count
from lorakeet.rundir.versions import versions

FILE = "data.json"
NUM_SHOWN = 10
LONGEST_SHOWN = 1500
"""Tokens of a row that are kept to be shown."""
PROVEN = (
    "the tokens before each answer are those that inference sends",
    "each span that is trained on decodes to the answer and its end token",
    "the end token is one at which generation stops",
    "no beginning-of-text token is doubled",
    "exactly the chosen turns are trained on",
)
"""What data/prove.py has proven of every row, or the run would not have begun."""


@dataclass
class DataRecord:
    """Sees every row once; give its `add` to prepare_data as `visit`."""

    shown: list[Shown] = field(default_factory=list)
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    places: list[str] = field(default_factory=list)
    duplicates: Duplicates = field(init=False)

    def __post_init__(self) -> None:
        self.duplicates = Duplicates(self.places.__getitem__, near=False)

    def add(self, conversation: Conversation, examples: Sequence[Example]) -> None:
        """Count one row with its examples; it has none if it was dropped."""
        if not examples:
            return
        self.places.append(conversation.place)
        self.duplicates.add(conversation)
        self.lengths.extend(len(example.input_ids) for example in examples)
        self.shown += [Shown(conversation, one) for one in examples][: NUM_SHOWN - len(self.shown)]

    def write(self, run_directory: Path, data: PreparedData, tokenizer: Tokenizer) -> None:
        """Write RUN/data.json."""
        content = {
            "command": command_line(),
            "statistics": self._statistics(data),
            "proofs": self._proofs(data),
            "rows": [
                {"place": one.example.place, "parts": list(stretches(_cut(one.example), tokenizer))} for one in self.shown
            ],
            "conflicts": self.duplicates.conflicts()[1],
            "versions": versions(),
        }
        durable.write_file(run_directory / FILE, (json.dumps(content, indent=1) + "\n").encode())

    def _statistics(self, data: PreparedData) -> dict[str, Any]:
        lengths = asdict(measure(self.lengths.tolist()))
        lengths.pop("histogram")
        findings, supervised = data.findings, data.train.num_supervised_tokens
        return {
            "rows trained on": f"{len(data.train.examples):,}",
            "rows held out": f"{len(data.held_out):,}",
            "tokens of an epoch": f"{data.train.num_tokens:,}",
            "of them trained on": f"{supervised:,} ({supervised / max(1, data.train.num_tokens):.0%})",
            "lengths of all rows in tokens": ", ".join(f"{name} {value:,.0f}" for name, value in lengths.items()),
            "shortened, dropped": f"{findings.num_truncated:,}, {findings.num_dropped:,}",
            "exact duplicates": f"{findings.duplicates.count:,}",
        }

    def _proofs(self, data: PreparedData) -> dict[str, str]:
        """Return what was proven, and of how many rows."""
        rows = len(data.train.examples) + len(data.held_out)
        proofs = dict.fromkeys(PROVEN, f"{rows:,} of {count(rows, 'row')}")
        cut = data.findings.num_truncated
        whole = f"{rows - cut:,} of {count(rows, 'row')}" + (f"; {cut:,} shortened as asked for" if cut else "")
        return proofs | {"nothing that is trained on was cut off": whole}


def _cut(example: Example) -> Example:
    """Keep the first tokens of a long row."""
    if len(example.input_ids) <= LONGEST_SHOWN:
        return example
    spans = tuple((start, min(end, LONGEST_SHOWN)) for start, end in example.spans if start < LONGEST_SHOWN)
    return Example(example.input_ids[:LONGEST_SHOWN], spans, example.place)


def command_line() -> str | None:
    """Return the command that started this process, without secrets; None if that was not `lorakeet`."""
    if Path(sys.argv[0]).name not in ("lorakeet", "__main__.py"):
        return None
    return redact(shlex.join(["lorakeet", *sys.argv[1:]]))
