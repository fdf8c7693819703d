"""What a run shows while it trains: a panel in a terminal or plain lines, and several reporters as one.

data in: a row for every step, evaluation and sample → out: text on stderr. Files are written in rundir/metrics_file.py,
other programs' reporters are in services.py.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lorakeet import progress
from lorakeet.errors import LorakeetError, redact
from lorakeet.formatting import duration
from lorakeet.rundir.metrics_file import Reporter
from lorakeet.rundir.rows import EvaluationRow, Row, SampleRow, StepRow
from lorakeet.training.panel import Panel

logger = logging.getLogger(__name__)


class ConsoleReporter(Reporter):
    """Shows a panel in a terminal, with lines above it, and plain lines if there is none. Writes to stderr only."""

    def __init__(
        self,
        total_steps: int,
        first_step: int = 0,
        *,
        title: str = "training",
        evaluation_every: int | None = None,
        console: Console | None = None,
    ) -> None:
        self._console, self._total = console or progress.console(), total_steps
        self._panel = Panel(title, total_steps, first_step, evaluation_every) if self._console.is_interactive else None
        self._open = ExitStack()
        if self._panel is not None:
            self._open.enter_context(Live(self._panel, console=self._console, refresh_per_second=4, transient=True))
        self._open.enter_context(progress.shown_by(self._panel or progress.Lines()))

    def step(self, row: StepRow) -> None:
        """Show the step's numbers in the panel."""
        if self._panel is not None:
            self._panel.step(row)

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
            case StepRow() if self._panel is None:
                self._print(
                    f"step {row.step:>5}/{self._total}  loss {row.loss:.4f}  lr {row.learning_rate:.2e}  "
                    f"grad {row.grad_norm:.2f}  {row.tokens_per_second:,.0f} tokens/s  {duration(row.seconds_left)} left"
                )

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=not self._console.is_terminal)

    def close(self) -> None:
        """Take the panel down, and leave one line of what it showed."""
        self._open.close()
        if self._panel is not None and self._panel.row is not None:
            self._print(self._panel.summary())


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


def _one_line(text: str, longest: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
