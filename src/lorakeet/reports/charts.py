"""Curves of one run or of several, small enough to be packed into a page.

data in: ReportedRuns → out: plain values for charts.js: for each chart its title, unit and series. A series of any length
becomes at most MOST_POINTS points that keep its extremes. Nothing is drawn here.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lorakeet.reports.ledger import Ledger
from lorakeet.reports.reported_run import ReportedRun, Row

MOST_POINTS = 1200
"""Points of one series: more than a screen has columns."""
SMOOTHED_SHARE = 0.02
"""Share of a run's logged steps over which the smoothed loss forgets."""

LEAST_SMOOTHED = 10
"""Fewer points are shown as they are."""
_NOISY = ("grad_norm", "tokens_per_second")

Points = tuple[Sequence[float], Sequence[float]]
"""x and y, of one length; x rises."""


def charts(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Build the charts that these runs have values for."""
    built = [
        _chart("loss", "Loss", "nats a token", "step", [line for i, run in enumerate(runs) for line in _losses(run, i, runs)]),
        _over_steps(runs, "learning_rate", "Learning rate", ""),
        _over_steps(runs, "grad_norm", "Gradient norm", "before clipping"),
        _over_steps(runs, "tokens_per_second", "Tokens per second", ""),
        _over_steps(runs, "peak_memory_bytes", "Peak memory", "GB", lambda value: value / 1e9),
    ]
    return [chart for chart in built if chart["series"]]


def row_chart(ledger: Ledger) -> dict[str, Any]:
    """Draw the losses of all rows, lowest first, for the first and the last epoch."""
    lines = []
    for turn, (epoch, losses) in enumerate(ledger.epochs_to_compare()):
        ordered = sorted(losses)
        share = [100 * (i + 1) / len(ordered) for i in range(len(ordered))]
        lines.append(_series(f"epoch {epoch}", turn, (share, ordered), most=200))
    return _chart("rows", "Loss of every training row, lowest first", "nats a token", "% of rows", lines)


def _losses(run: ReportedRun, index: int, runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    prefix = f"{run.name}: " if len(runs) > 1 else ""
    trained, held_out = points(run.steps, "loss"), points(run.evaluations, "eval_loss")
    lines = _with_mean(f"{prefix}training", 2 * index, trained, is_alone=len(runs) == 1, is_noisy=True) if trained[0] else []
    if held_out[0]:
        lines.append(_series(f"{prefix}held out", 2 * index + 1, held_out, most=MOST_POINTS // len(runs), look="marked"))
    return lines


def _with_mean(label: str, color: int, line: Points, *, is_alone: bool, is_noisy: bool) -> list[dict[str, Any]]:
    """Draw a noisy curve smoothed, over its faint self where it is alone; a calm one as it is."""
    most = MOST_POINTS if is_alone else MOST_POINTS // 3
    if not is_noisy or len(line[0]) < LEAST_SMOOTHED:
        return [_series(label, color, line, most=most)]
    mean = _series(f"{label}, smoothed", color, (line[0], smoothed(line[1])), most=most)
    return [_series(label, color, line, most=most, look="faint"), mean] if is_alone else [mean]


def _over_steps(
    runs: Sequence[ReportedRun], key: str, title: str, unit: str, scale: Callable[[float], float] = float
) -> dict[str, Any]:
    lines = []
    for index, run in enumerate(runs):
        steps, values = points(run.steps, key)
        if steps:
            label = run.name if len(runs) > 1 else title.lower()
            scaled = [scale(value) for value in values]
            lines += _with_mean(label, 2 * index, (steps, scaled), is_alone=len(runs) == 1, is_noisy=key in _NOISY)
    return _chart(key, title, unit, "step", lines)


def _chart(name: str, title: str, unit: str, x: str, series: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "title": title, "unit": unit, "x": x, "series": series}


def _series(label: str, color: int, line: Points, *, most: int, look: str = "plain") -> dict[str, Any]:
    x, y = thinned(line, most)
    return {"label": label, "color": color % 6, "look": look, "x": x, "y": [float(f"{value:.5g}") for value in y]}


def points(rows: Iterable[Row], key: str) -> tuple[list[float], list[float]]:
    """Return steps and values of the rows that have a finite number under `key`, each step once, its last row's."""
    found = {row["step"]: row[key] for row in rows if isinstance(row.get(key), int | float) and math.isfinite(row[key])}
    steps = sorted(found)
    return steps, [found[step] for step in steps]


def smoothed(values: Sequence[float], share: float = SMOOTHED_SHARE) -> list[float]:
    """Average each value with those before it, which count less the older they are; the first value counts once only."""
    keep = 1 - 1 / max(1.0, share * len(values), min(len(values) / 4, 5))
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(mean / weight)
    return result


def thinned(line: Points, most: int) -> tuple[list[float], list[float]]:
    """Keep at most `most` points: first and last, and of every stretch between the lowest and the highest."""
    x, y = line
    if len(x) <= most:
        return list(x), list(y)
    num = (most - 2) // 2
    kept = {0, len(x) - 1}
    for i in range(num):
        start, end = i * len(x) // num, (i + 1) * len(x) // num
        stretch = y[start:end]
        kept |= {start + stretch.index(min(stretch)), start + stretch.index(max(stretch))}
    chosen = sorted(kept)
    return [x[i] for i in chosen], [y[i] for i in chosen]
