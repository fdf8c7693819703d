"""Rows that cannot be trained on: `check` lists them, `train` stops at the first one and names the command that lists them.

data in: the errors of rows, one at a time → out: one error that lists them. The rows are read and encoded elsewhere (data/).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from lorakeet.config import RunConfig
from lorakeet.data.read import OnBadRow
from lorakeet.errors import DataError
from lorakeet.formatting import command

NUM_LISTED = 20


class BadRowsError(DataError):
    """Several rows cannot be trained on; the first are listed, a line each."""

    def __init__(self, first: list[DataError], count: int) -> None:
        self.first, self.count = first, count
        listed = f"; the first {len(first)} are listed" if count > len(first) else ""
        fixes: dict[str, str] = {}
        for error in first:
            fixes.setdefault(error.code, f"{error.code}: {error.fix}")
        super().__init__("E-DATA-196", f"{count:,} rows cannot be trained on{listed}", fix="; ".join(fixes.values()))

    def __str__(self) -> str:
        lines = [str(DataError(error.code, error.message, place=error.place)) for error in self.first]
        return "\n".join([*lines, super().__str__()])

    def __reduce__(self) -> tuple:
        return BadRowsError, (self.first, self.count)


@contextmanager
def listing_bad_rows() -> Iterator[OnBadRow]:
    """Return what collects the errors of bad rows, and raise them at the end: one as it is, several as a BadRowsError."""
    first: list[DataError] = []
    count = 0

    def collect(error: DataError) -> None:
        nonlocal count
        count += 1
        if len(first) < NUM_LISTED:
            first.append(error)

    try:
        yield collect
    except DataError:
        if not first:  # else it may only be the consequence: no row is left, for example
            raise
    if first:
        raise BadRowsError(first, count) if count > 1 else first[0]


def stop_naming_check(config: RunConfig) -> OnBadRow:
    """Return what stops at the first bad row and names the command that lists all of them."""

    def stop(error: DataError) -> None:
        fix = f"{error.fix}. List all rows that cannot be used: {check_command(config)}"
        raise DataError(error.code, error.message, place=error.place, fix=fix) from None

    return stop


def check_command(config: RunConfig) -> str:
    """Write the command that checks a run's rows, with all that decides how they are read."""
    data = config.data.model_dump(mode="json", exclude_defaults=True, exclude={"train"})
    words = ["check", config.model, *config.data.train]
    for key, value in data.items():
        words += ["--set", f"data.{key}={json.dumps(value, ensure_ascii=False)}"]
    if config.training_config.max_length is not None:
        words += ["--max-length", str(config.training_config.max_length)]
    return command(*words)
