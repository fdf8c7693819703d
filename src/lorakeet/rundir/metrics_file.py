"""Rows of a run on disk, one JSON object a line: metrics.jsonl and samples.jsonl.

data in: rows as they come → out: lines in a file, forced to disk before a checkpoint, and back. A resumed run takes out the
lines that it will write again; a reader passes over what a crash cut.
"""

import itertools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
            drop_lines(path, first_step)
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


def drop_lines(path: Path, first_step: int) -> None:
    """Take out the lines beyond `first_step`, which a resumed run will write again; all of them at step 0."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() and first_step else []
    durable.write_file(path, b"".join(line for line in lines if _step_of(line) <= first_step))


def _step_of(row: bytes) -> float:
    """Return the step of a line; infinity for one that a crash cut or spoiled."""
    try:
        return json.loads(row)["step"] if row.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the objects of a file, passing over lines that a crash cut or spoiled."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        while lines := list(itertools.islice(file, 1000)):
            try:
                rows = json.loads(f"[{','.join(lines)}]")  # several times as fast as line by line
            except (ValueError, RecursionError):
                rows = [row for line in lines for row in _parsed(line)]
            yield from (row for row in rows if isinstance(row, dict))


def _parsed(line: str) -> list[Any]:
    try:
        return [json.loads(line)]
    except (ValueError, RecursionError):
        return []
