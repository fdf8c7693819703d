"""An evaluation as a person reads it, and as a program does.

data in: a Comparison → out: a table with base and tuned side by side and a few answers below each other, which
80 columns hold, or plain JSON values.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lorakeet.evaluation.compare import Comparison, Measurement, Progress

if TYPE_CHECKING:
    from rich.console import Console

_LOWER_IS_BETTER = ("loss", "perplexity")


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the numbers and every answer as JSON values."""
    loss = comparison.tuned.loss
    return {
        "num_conversations": comparison.num_conversations,
        "num_supervised_tokens": loss.num_supervised_tokens if loss is not None else None,
        "base": comparison.base.numbers if comparison.base is not None else None,
        "tuned": comparison.tuned.numbers,
    }


def answers_to_dicts(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one object for each conversation that was answered: prompt, reference, both answers and their scores."""
    rows = []
    for index, tuned in enumerate(comparison.tuned.answers):
        row: dict[str, Any] = {"place": tuned.place, "prompt": tuned.prompt, "reference": tuned.reference}
        columns = {"base": comparison.base, "tuned": comparison.tuned}
        for name, column in columns.items():
            if column is not None:
                answer = dataclasses.asdict(column.answers[index])
                row[name] = {key: answer[key] for key in ("text", "stop_reason", "scores")}
        rows.append(row)
    return rows


@contextmanager
def live_progress() -> Iterator[Progress]:
    """Show on stderr how far an evaluation is; if that is no terminal, show nothing."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    tasks: dict[str, Any] = {}
    with Bars(console=console, transient=True, disable=not console.is_terminal) as bars:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield report


def print_comparison(comparison: Comparison, console: "Console", *, num_examples: int = 3) -> None:
    """Print the table, and the first answers beside their references."""
    from rich.table import Table

    table = Table(title=f"{comparison.num_conversations} held-out conversations")
    table.add_column("")
    columns = [("base", comparison.base)] if comparison.base is not None else []
    columns.append(("tuned", comparison.tuned))
    for name, _ in columns:
        table.add_column(name, justify="right")
    for metric in comparison.tuned.numbers:
        values = [column.numbers[metric] for _, column in columns]
        best = min(values) if metric in _LOWER_IS_BETTER else max(values)
        cells = [
            f"[bold]{_shown(metric, value)}[/]" if value == best and len(values) > 1 else _shown(metric, value)
            for value in values
        ]
        table.add_row(metric.replace("_", " "), *cells)
    console.print(table)
    if num_examples and comparison.tuned.answers:
        _print_examples(columns, console, num_examples)


def _print_examples(columns: list[tuple[str, Measurement]], console: "Console", num_examples: int) -> None:
    """Print a few answers, a line for each part; what models and users wrote is never read as markup."""
    from rich.table import Table
    from rich.text import Text

    answers = [column.answers for _, column in columns]
    for row in list(zip(*answers, strict=True))[:num_examples]:
        parts = [("prompt", row[0].prompt, "bold"), ("reference", row[0].reference, "")]
        parts += [(name, answer.text, "") for (name, _), answer in zip(columns, row, strict=True)]
        grid = Table.grid(padding=(0, 2))
        grid.add_column(min_width=len("reference"), style="dim")
        grid.add_column(overflow="fold")
        for name, text, style in parts:
            grid.add_row(name, Text(_short(text), style=style))
        console.print()
        console.print(grid)


def _shown(metric: str, value: float) -> str:
    return f"{value:.4f}" if metric in _LOWER_IS_BETTER else f"{100 * value:.1f} %"


def _short(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
