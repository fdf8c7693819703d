"""What is being done, how much of it is done, and how long the rest takes: one line on stderr, for every command.

data in: reports of whoever works → out: in a terminal a bar that goes away at the end, in a pipe a plain line now and then,
nothing where nobody shows it. All messages go through the same console, so that they stand above a bar and leave it whole.
The panel of a training run is in training/reporting.py.
"""

import functools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from lorakeet import dist
from lorakeet.formatting import COMMAND, duration

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

QUIET_S, PAUSE_S = 3, 30
"""Seconds: in a pipe, work has a first line when it has taken so long, and then one so often."""


class Work:
    """One thing that is being done: how much of how much, and since when."""

    def __init__(self, what: str, done: int, total: int | None) -> None:
        self.what, self.done, self.total = what, done, total
        self._begin = time.monotonic()
        self._first = self._last = (done, self._begin)

    def goes_on(self, what: str, done: int, total: int | None) -> bool:
        """Take a report if it is about this work; return whether it is."""
        if (what, total) != (self.what, self.total) or done < self.done:
            return False
        self.done, self._last = done, (done, time.monotonic())
        if self._first[0] == 0:  # the first part may compile, and tells nothing about the others
            self._first = self._last
        return True

    def __str__(self) -> str:
        """Return "512 of 2,260, 12 s left"; as long as nobody can know that, how long it has taken so far."""
        (first, begin), (done, end) = self._first, self._last
        text = f"{self.done:,} of {self.total:,}, " if self.total else ""
        if self.total and done > first:
            return f"{text}{duration(round((end - begin) / (done - first) * (self.total - done)))} left"
        return f"{text}{duration(int(time.monotonic() - self._begin))} so far"


class Display(Protocol):
    """Something that shows work."""

    def report(self, what: str, done: int, total: int | None) -> None:
        """Show how much of how much is done; `total` is None if nobody knows."""


class Lines:
    """Shows work that can be counted as a plain line now and then; other work is silent, so that an error stays one line."""

    def __init__(self) -> None:
        self._work, self._due = Work("", 0, None), 0.0

    def report(self, what: str, done: int, total: int | None) -> None:
        """Say a line if it is time for one."""
        now = time.monotonic()
        if not self._work.goes_on(what, done, total):
            self._work, self._due = Work(what, done, total), now + QUIET_S
        if total and done < total and now >= self._due:
            self._due = now + PAUSE_S
            say(f"{what[:1].upper()}{what[1:]}: {self._work}")


class Bar:
    """Shows work as a bar between what is done and how far it is."""

    def __init__(self) -> None:
        self._work: Work | None = None

    def report(self, what: str, done: int, total: int | None) -> None:
        """Move the bar, or begin another one in its place."""
        if self._work is None or not self._work.goes_on(what, done, total):
            self._work = Work(what, done, total)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Draw the bar, if anything is being done."""
        work = self._work
        if work is not None:
            yield bar_line(work.what, work.done, work.total, str(work), width_in(options))


def width_in(options: "ConsoleOptions") -> int:
    """Return how wide something live may be: two columns stay free, since a terminal writes ^C behind it."""
    return max(1, min(options.max_width - 2, 100))


def bar_line(left: str, done: int, total: int | None, right: str, width: int | None = None) -> "Table":
    """Draw a bar between two texts; without a `total` it pulses."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    line = Table.grid(padding=(0, 1), expand=True)
    line.width = width
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    line.add_row(Text(left), ProgressBar(total or None, done, pulse=not total), Text(right))
    return line


_current: Display | None = None


@functools.cache
def console() -> "Console":
    """Return the one console of stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def shown() -> Iterator[None]:
    """Show what is reported while the block runs, if this is the process that speaks to the user."""
    if _current is not None or not dist.is_main():
        yield
        return
    if not console().is_interactive:
        with shown_by(Lines()):
            yield
        return
    from rich.live import Live

    bar = Bar()
    with Live(bar, console=console(), transient=True, refresh_per_second=4), shown_by(bar):
        yield


@contextmanager
def shown_by(display: Display) -> Iterator[None]:
    """Hand what is reported while the block runs to `display`."""
    global _current
    before, _current = _current, display
    try:
        yield
    finally:
        _current = before


def report(what: str, done: int = 0, total: int | None = None) -> None:
    """Say what is being done, and how much of how much of it; without a `total` it is shown for how long already."""
    if _current is not None:
        _current.report(what, done, total)


def encoding(done: int, total: int) -> None:
    """Report how many rows are encoded and proven."""
    report("encoding and proving rows", done, total)


def say(message: str, style: str = "") -> None:
    """Write a message to stderr, above what is shown: wrapped at words in a terminal, a command on its own line.

    A pipe gets one line.
    """
    from rich.text import Text

    out = console()
    found = COMMAND.search(message) if out.is_terminal else None
    if found is None or len(message) <= out.width:
        out.print(Text(message, style=style), soft_wrap=not out.is_terminal)
    else:
        out.print(Text(message[: found.start()].rstrip(), style=style))
        out.print(Text(f"  {found[0]}", style=style), soft_wrap=True)


class LogHandler(logging.Handler):
    """Writes log records as messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        try:
            say(self.format(record))
        except Exception:
            self.handleError(record)
