"""Rows of a run on disk, one JSON object a line: metrics.jsonl and samples.jsonl.

data in: rows as they come → out: lines in a file, forced to disk before a checkpoint; a resumed run takes out the lines
that it will write again.
"""

import json
import math
import os
from pathlib import Path

from lorakeet.files import durable
from lorakeet.rundir.rows import EvaluationRow, Row, StepRow


class Reporter:
    """Receives what happens in a run; a subclass overrides what it uses."""

    def step(self, row: StepRow) -> None:
        """Receive every optimizer step."""

    def log(self, row: Row) -> None:
        """Receive a logged step, an evaluation or a sample."""

    def close(self) -> None:
        """Finish; nothing follows."""


class JsonlReporter(Reporter):
    """Appends every logged row to a file, one JSON object a line."""

    def __init__(self, path: Path, first_step: int = 0, kinds: tuple[type[Row], ...] = (StepRow, EvaluationRow)) -> None:
        """Open `path` for rows of `kinds`; rows beyond `first_step`, which a resumed run will write again, are taken out."""
        self._path, self._kinds = path, kinds
        with durable.writing(path):
            rows = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
            durable.write_file(path, b"".join(row for row in rows if first_step and _step_of(row) <= first_step))
            self._file = path.open("a", encoding="utf-8")

    def log(self, row: Row) -> None:
        """Write the row, if it is of this file's kinds."""
        if not isinstance(row, self._kinds):
            return
        with durable.writing(self._path):
            self._file.write(json.dumps(row.to_dict()) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Force all rows to disk."""
        with durable.writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with durable.writing(self._path):
            self._file.close()


def _step_of(row: bytes) -> float:
    """Return the step of a line; infinity for one that a crash cut or spoiled."""
    try:
        return json.loads(row)["step"] if row.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
