"""An evaluation as a person reads it, and as a program does.

data in: a Comparison → out: a table with a column a model, how sure the differences are, and the worst and the most changed
answers, which 80 columns hold; or plain JSON values.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorakeet.evaluation.compare import Comparison, Measurement
from lorakeet.evaluation.intervals import Difference
from lorakeet.formatting import count

if TYPE_CHECKING:
    from rich.console import Console

    from lorakeet.evaluation.harness import Scores

_LOWER_IS_BETTER = ("loss", "perplexity")
STDERR = "_stderr"
"""Behind the name of a metric: its standard error."""
_NEITHER_IS_BETTER = ("stop_rate", "answer_tokens")


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the numbers and every answer as JSON values."""
    loss = comparison.tuned.loss
    return {
        "num_conversations": comparison.num_conversations,
        "num_supervised_tokens": loss.num_supervised_tokens if loss is not None else None,
        "base": comparison.base.numbers if comparison.base is not None else None,
        "tuned": comparison.tuned.numbers,
        "others": {name: column.numbers for name, column in comparison.others.items()},
        "differences": {name: dataclasses.asdict(one) for name, one in comparison.differences.items()},
        "num_trained_on": comparison.trained_on.count if comparison.trained_on is not None else None,
    }


def answers_to_dicts(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one object for each conversation that was answered: prompt, reference, every answer and its scores."""
    rows = []
    for index, tuned in enumerate(comparison.tuned.answers):
        row: dict[str, Any] = {"place": tuned.place, "prompt": tuned.prompt, "reference": tuned.reference}
        for name, column in comparison.columns.items():
            answer = dataclasses.asdict(column.answers[index])
            row[name] = {key: answer[key] for key in ("text", "stop_reason", "num_tokens", "scores")}
        rows.append(row)
    return rows


def print_comparison(comparison: Comparison, console: "Console", *, num_examples: int = 3) -> None:
    """Print the table, and the worst and the most changed answers beside their references."""
    from rich.table import Table

    table = Table(title=count(comparison.num_conversations, "held-out conversation"))
    table.add_column("")
    columns, differences = comparison.columns, comparison.differences
    for name in columns:
        table.add_column(name, justify="right")
    if differences:
        table.add_column("tuned - base, 95 %", justify="right")
    for metric in comparison.tuned.numbers:
        values = [column.numbers[metric] for column in columns.values()]
        best = min(values) if metric in _LOWER_IS_BETTER else max(values)
        is_ranked = len(values) > 1 and metric not in _NEITHER_IS_BETTER
        cells = [f"[bold]{_shown(metric, one)}[/]" if is_ranked and one == best else _shown(metric, one) for one in values]
        difference = [_interval(differences[metric])] if metric in differences else [""] if differences else []
        table.add_row(metric.replace("_", " "), *cells, *difference)
    console.print(table)
    for line in _notes(comparison):
        console.print(line)
    for title, rows in _examples(comparison, num_examples):
        console.print(f"\n{title}:", style="bold")
        _print_rows(columns, rows, console)


def print_tasks(found: "Mapping[str, Scores]", console: "Console") -> None:
    """Print a row for each metric of each task, with its standard error, and a column for each model."""
    from rich.table import Table

    table = Table("task", "metric")
    for name in found:
        table.add_column(name, justify="right")
    for task, numbers in next(iter(found.values())).items():
        for metric in numbers:
            if STDERR not in metric:
                cells = [_with_error(column[task], metric) for column in found.values()]
                table.add_row(task, metric, *cells)
    console.print(table)
    console.print("± is one standard error. Numbers are lm-evaluation-harness's own, as its tasks define them.")


def _with_error(numbers: Mapping[str, float], metric: str) -> str:
    name, _, filtered = metric.partition(",")
    error = numbers.get(name + STDERR + (f",{filtered}" if filtered else ""))
    return f"{numbers[metric]:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _notes(comparison: Comparison) -> Iterator[str]:
    """Yield what a reader of the table must know."""
    if comparison.base is not None and len(comparison.tuned.answers) == 1:
        yield "One row says nothing of other rows: differences and their intervals are shown from two rows on."
    doubtful = [name.replace("_", " ") for name, one in comparison.differences.items() if not one.is_real]
    if doubtful:
        yield f"Not certain with so few rows, since the interval holds 0: {', '.join(doubtful)}."
    if comparison.trained_on is not None and comparison.trained_on.count:
        places = ", ".join(place for place, _ in comparison.trained_on.examples)
        yield f"{comparison.trained_on.count} of these rows also stand in the training data, so they prove little: {places}."


def _examples(comparison: Comparison, count: int) -> Iterator[tuple[str, list[int]]]:
    """Yield which rows to show, under which title: the first if nothing scores them, else the worst and the most changed."""
    answers = comparison.tuned.answers
    if not count or not answers:
        return
    metric = next(iter(answers[-1].scores), None)
    if metric is None:
        yield "First answers", list(range(len(answers)))[:count]
        return
    scores = [answer.scores.get(metric, 0.0) for answer in answers]
    order = sorted(range(len(answers)), key=scores.__getitem__)
    worst = [i for i in order if scores[i] < 1][:count]
    if worst:
        yield f"Worst answers by {metric.replace('_', ' ')}", worst
    if comparison.base is not None:
        base = [answer.scores.get(metric, 0.0) for answer in comparison.base.answers]
        changed = sorted((i for i in order if scores[i] != base[i]), key=lambda i: -abs(scores[i] - base[i]))
        if new := [i for i in changed if i not in worst][:count]:
            yield "Most changed", new


def _print_rows(columns: Mapping[str, Measurement], rows: Sequence[int], console: "Console") -> None:
    """Print a few answers, a line for each part; what models and users wrote is never read as markup."""
    from rich.table import Table
    from rich.text import Text

    for index in rows:
        found = {name: column.answers[index] for name, column in columns.items()}
        first = next(iter(found.values()))
        parts = [("prompt", first.prompt, "bold"), ("reference", first.reference, "")]
        parts += [(name, answer.text, "") for name, answer in found.items()]
        grid = Table.grid(padding=(0, 2))
        grid.add_column(min_width=len("reference"), style="dim")
        grid.add_column(overflow="fold")
        for name, text, style in parts:
            grid.add_row(name, Text(_short(text), style=style))
        console.print()
        console.print(grid)


def _interval(one: Difference) -> str:
    return f"{100 * one.mean:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"


def _shown(metric: str, value: float) -> str:
    if metric == "answer_tokens":
        return f"{value:.1f}"
    return f"{value:.4f}" if metric in _LOWER_IS_BETTER else f"{100 * value:.1f} %"


def _short(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
