"""What a run shows while it trains: a live bar in a terminal or plain lines, and several reporters as one.

data in: a row for every step, evaluation and sample → out: text on stderr. Files are written in rundir/metrics_file.py,
other programs' reporters are in services.py.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from lorakeet import dist
from lorakeet.errors import LorakeetError, redact
from lorakeet.rundir.metrics_file import Reporter
from lorakeet.rundir.rows import EvaluationRow, Row, SampleRow, StepRow

logger = logging.getLogger(__name__)


class ConsoleReporter(Reporter):
    """Shows a live bar in a terminal, and plain lines if there is none. Writes to stderr only."""

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

    def step(self, row: StepRow) -> None:
        """Move the bar."""
        if self._progress is not None:
            numbers = f"loss {row.loss:.3f}  {row.tokens_per_second:,.0f} tokens/s"
            left = f"{_duration(row.seconds_left)} left"
            self._progress.update(self._task, completed=row.step, numbers=numbers, left=left)

    def log(self, row: Row) -> None:
        """Print a line; of a sample, one for each part, since what models and users write is never read as markup."""
        match row:
            case EvaluationRow():
                self._print(f"step {row.step:>5}  held-out loss {row.eval_loss:.4f}")
            case SampleRow():
                parts = [("prompt", row.prompt), ("answer", row.text), ("expected", row.reference)]
                lines = [f"{name:10}{_one_line(text)}" for name, text in parts if text is not None]
                self._print(f"step {row.step:>5}  {lines[0]}")
                for line in lines[1:]:
                    self._print(" " * 12 + line, style="dim")
            case StepRow() if self._progress is None:
                self._print(
                    f"step {row.step:>5}/{self._total}  loss {row.loss:.4f}  lr {row.learning_rate:.2e}  "
                    f"grad {row.grad_norm:.2f}  {row.tokens_per_second:,.0f} tokens/s  {_duration(row.seconds_left)} left"
                )

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def close(self) -> None:
        """Take the bar down."""
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def encoding_progress(console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show how many rows are encoded and proven, in a bar that goes away again; nothing if there is no terminal."""
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

    def step(self, row: StepRow) -> None:
        """Pass a step on to all."""
        self._each(lambda reporter: reporter.step(row))

    def log(self, row: Row) -> None:
        """Pass a row on to all."""
        self._each(lambda reporter: reporter.log(row))

    def __enter__(self) -> "Reporters":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._each(lambda reporter: reporter.close())

    def _each(self, what: Callable[[Reporter], None]) -> None:
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
    """Log in one line that a reporter is dropped, and why."""
    reason = " ".join(redact(f"{type(error).__name__}: {error}").split())
    logger.warning("%s reports no more, training goes on: %s", name, reason[:300])


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _one_line(text: str, longest: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
