"""What a terminal shows of a run that trains: how far it is, its loss as a curve, its pace and memory, and what it waits for.

data in: rows of steps, reports of evaluations → out: something that rich draws. Where and when is the reporter's to say.
"""

import itertools
from collections.abc import Sequence

import rich.panel
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from lorakeet.formatting import duration, size
from lorakeet.progress import Work, bar_line, width_in
from lorakeet.rundir.rows import StepRow

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE = 40
"""Characters of the loss curve at most."""


class Panel:
    """The state of a run, drawn anew whenever it is asked for."""

    def __init__(self, title: str, total_steps: int, first_step: int, evaluation_every: int | None) -> None:
        self.title, self.total, self.every = title, total_steps, evaluation_every
        self.row: StepRow | None = None
        self._step, self._losses = first_step, list[float]()
        self._work: Work | None = Work("first step", 0, None)

    def step(self, row: StepRow) -> None:
        """Take a step's numbers; whatever was reported before it is over."""
        self.row, self._step, self._work = row, row.step, None
        self._losses.append(row.loss)

    def report(self, what: str, done: int, total: int | None) -> None:
        """Show other work than steps, until the next step."""
        if self._work is None or not self._work.goes_on(what, done, total):
            self._work = Work(what, done, total)

    def summary(self) -> str:
        """Return in one line what came of the steps."""
        row = self.row
        assert row is not None
        took = f"{duration(row.elapsed_s)}, {row.tokens_per_second:,.0f} tokens/s"
        curve = f"{self._losses[0]:.3f} {sparkline(self._losses, 20)} " if len(self._losses) > 1 else ""
        return f"step {row.step:>5}  loss {curve}{row.loss:.3f}  {took}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the panel."""
        left = f"{duration(self.row.seconds_left)} left" if self.row is not None else ""
        head = bar_line(f"step {self._step:,} of {self.total:,}", self._step, self.total, left)
        parts: list[RenderableType] = [head]
        if self.row is not None:
            parts += [self._loss(options), Columns([Text(part) for part in self._numbers(self.row)], padding=(0, 3))]
        if self._work is not None:
            parts.append(Text(f"{self._work.what}: {self._work}"))
        yield rich.panel.Panel(Group(*parts), title=Text(self.title), title_align="left", width=width_in(options))

    def _loss(self, options: ConsoleOptions) -> Text:
        assert self.row is not None
        text = Text(f"loss {self.row.loss:.4f}  ", no_wrap=True, overflow="ellipsis")
        return text if options.ascii_only else text.append(sparkline(self._losses, CURVE), style="cyan")

    def _numbers(self, row: StepRow) -> list[str]:
        share = row.num_supervised_tokens / row.num_tokens
        numbers = [
            f"{row.tokens_per_second:,.0f} tokens/s, {share * row.tokens_per_second:,.0f} trained on",
            f"memory {size(row.peak_memory_bytes)}",
        ]
        if self.every is not None and self._step < self.total:
            numbers.append(f"evaluation at step {min(self.total, (self._step // self.every + 1) * self.every):,}")
        return numbers


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as blocks, from their lowest to their highest; each stands for the mean of neighbours if they are many."""
    count = min(width, len(values))
    cuts = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)
