"""What a run tells while it trains: metrics.jsonl for programs, a live display or plain lines for people.

data in: one row of numbers for every logged step or evaluation → out: a line on disk and something on stderr.
A row is what DESIGN calls it: step, epoch, loss, grad_norm, learning_rate, num_tokens, num_supervised_tokens,
tokens_per_second, elapsed_s, peak_memory_bytes; evaluation rows carry eval_loss and its token count.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lorakeet import dist
from lorakeet.errors import LorakeetError, redact
from lorakeet.files import durable

logger = logging.getLogger(__name__)

Row = dict[str, Any]


class Reporter(Protocol):
    """Receives what happens in a run."""

    def step(self, row: Row) -> None:
        """Hear of every optimizer step."""
        ...

    def log(self, row: Row) -> None:
        """Hear of a logged step or an evaluation."""
        ...

    def close(self) -> None:
        """Finish; nothing follows."""
        ...


class JsonlReporter:
    """Appends every logged row to a file, one JSON object a line."""

    def __init__(self, path: Path, first_step: int = 0) -> None:
        """Open `path`; rows beyond `first_step`, which a resumed run will write again, are taken out."""
        self._path = path
        with durable.writing(path):
            rows = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
            durable.write_file(path, b"".join(row for row in rows if first_step and _step_of(row) <= first_step))
            self._file = path.open("a", encoding="utf-8")

    def step(self, row: Row) -> None:
        """Keep nothing of single steps."""

    def log(self, row: Row) -> None:
        """Write the row."""
        with durable.writing(self._path):
            self._file.write(json.dumps(row) + "\n")
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


class ConsoleReporter:
    """Shows a live bar in a terminal, and plain lines where there is none. Writes to stderr only."""

    def __init__(self, total_steps: int, first_step: int = 0, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._total = total_steps
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self._console,
            )
            self._task = self._progress.add_task("training", total=total_steps, completed=first_step, numbers="", left="")
            self._progress.start()

    def step(self, row: Row) -> None:
        """Move the bar."""
        if self._progress is not None:
            numbers = f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s"
            left = f"{_duration(row['seconds_left'])} left"
            self._progress.update(self._task, completed=row["step"], numbers=numbers, left=left)

    def log(self, row: Row) -> None:
        """Print one line."""
        if "eval_loss" in row:
            text = f"step {row['step']:>5}  held-out loss {row['eval_loss']:.4f}"
        elif self._progress is None:
            text = (
                f"step {row['step']:>5}/{self._total}  loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}  "
                f"grad {row['grad_norm']:.2f}  {row['tokens_per_second']:,.0f} tokens/s  "
                f"{_duration(row['seconds_left'])} left"
            )
        else:
            return
        self._console.print(text, highlight=False)

    def close(self) -> None:
        """Take the bar down."""
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def encoding_progress(console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show how many rows are encoded and proven, in a bar that goes away again; nothing where there is no terminal."""
    console = console or Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    is_seen = console.is_terminal and dist.is_main()
    with Progress(*columns, console=console, transient=True, disable=not is_seen) as progress:
        task = progress.add_task("encoding and proving rows", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class Reporters:
    """Several reporters as one, closed at the end of a `with` block. One that fails is dropped; training goes on.

    An error of ours passes: it says that the run's own files cannot be written, so a checkpoint could not be either.
    """

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = list(reporters)

    def step(self, row: Row) -> None:
        """Tell all."""
        self._tell(lambda reporter: reporter.step(row))

    def log(self, row: Row) -> None:
        """Tell all."""
        self._tell(lambda reporter: reporter.log(row))

    def __enter__(self) -> "Reporters":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tell(lambda reporter: reporter.close())

    def _tell(self, what: Callable[[Reporter], None]) -> None:
        first: LorakeetError | None = None
        for reporter in list(self._reporters):
            try:
                what(reporter)
            except LorakeetError as error:
                first = first or error
            # Not KeyboardInterrupt, which is the user's; a package that calls sys.exit speaks for itself alone.
            except (Exception, SystemExit) as error:
                self._reporters.remove(reporter)
                warn_of_failure(type(reporter).__name__.removesuffix("Reporter"), error)
        if first is not None:
            raise first


def warn_of_failure(name: str, error: BaseException) -> None:
    """Say in one line that a reporter is dropped, and why."""
    reason = " ".join(redact(f"{type(error).__name__}: {error}").split())
    logger.warning("%s reports no more, training goes on: %s", name, reason[:300])


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
