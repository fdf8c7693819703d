"""RUN/report.html: one page that explains a run, or compares several.

data in: run directories → out: one HTML file. Everything comes from the directories' files; a run that goes on or was cut
off is shown as far as it came. How a page is written is page.py's business.
"""

import itertools
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakeet import dist
from lorakeet.errors import LorakeetError
from lorakeet.reports.charts import charts, row_chart
from lorakeet.reports.difference import differing_keys, flat, sections
from lorakeet.reports.ledger import Ledger
from lorakeet.reports.page import render, write_page
from lorakeet.reports.reported_run import ReportedRun, Row, read_run

logger = logging.getLogger(__name__)

NUM_ANSWERS = 12
_HASHES = ("base model", "data", "held-out data", "dtype")
SCRIPTS = ("uplot.min.js", "charts.js")


def write_report(directory: Path) -> Path:
    """Write RUN/report.html, and return its path."""
    path = directory / "report.html"
    write_page(path, report_html([directory]))
    return path


def write_report_of_run(directory: Path) -> None:
    """Write RUN/report.html at the end of a run, in the process that writes files; where that fails, the run still counts."""
    if not dist.is_main():
        return
    try:
        logger.info("Report: %s", write_report(directory))
    except (LorakeetError, OSError) as error:
        logger.warning("The report is not written: %s", error)


def write_comparison(directories: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page of one run or of several; if nothing is named, into the run or as comparison.html."""
    alone = directories[0] / "report.html" if len(directories) == 1 else Path("comparison.html")
    path = output or alone
    write_page(path, report_html(directories))
    return path


def report_html(directories: Sequence[Path], *, live: bool = False) -> str:
    """Render the report of one run, or of several side by side.

    Args:
        live: make a page that asks the server it came from for news.
    """
    runs = [read_run(directory) for directory in directories]
    ledgers = [Ledger.of(run.row_losses) for run in runs]
    drawn = charts(runs)
    if len(runs) == 1 and ledgers[0].rows:
        drawn.append(row_chart(ledgers[0]))
    return render(
        "run.html",
        scripts=(*SCRIPTS, "live.js") if live else SCRIPTS,
        data=drawn,
        live=live,
        runs=[_view(run, ledger) for run, ledger in zip(runs, ledgers, strict=True)],
        charts=drawn,
        answers=_answers(runs),
        differences=differing_keys([run.config for run in runs]),
    )


@dataclass(frozen=True)
class _View:
    """A run as the template shows it."""

    run: ReportedRun
    ledger: Ledger
    state: str
    outcome: dict[str, float | None]
    forecast: list[tuple[str, str, float, float | None]]
    config: dict[str, list[tuple[str, str]]]
    conflicts: list[list[str]]
    """Places of rows that have one prompt and different answers."""
    proofs: list[tuple[str, str]]
    hashes: list[tuple[str, str]]


def _view(run: ReportedRun, ledger: Ledger) -> _View:
    return _View(
        run=run,
        ledger=ledger,
        state=_state(run),
        outcome=_outcome(run),
        forecast=_forecast(run),
        config={name: flat(section) for name, section in sections(run.config).items()},
        conflicts=run.data.get("conflicts", []),
        proofs=flat(run.data.get("proofs") or {}),
        hashes=[(key, value) for key, value in run.identity.items() if key in _HASHES],
    )


def _state(run: ReportedRun) -> str:
    if run.adapter_step is not None:
        step = run.last.get("step")
        return (
            f"Finished after step {step}."
            if step == run.adapter_step
            else (f"Finished after step {step}; the adapter is that of step {run.adapter_step}.")
        )
    if run.last:
        resume = shlex.join(["lorakeet", "train", "--resume", "-o", str(run.directory)])
        return f"Not finished: the last logged step is {run.last['step']}. Go on with: {resume}"
    return "No step is logged yet."


def _outcome(run: ReportedRun) -> dict[str, float | None]:
    last, held_out = run.last, {row["step"]: row["eval_loss"] for row in run.evaluations}
    elapsed = last.get("elapsed_s")
    after = held_out.get(run.adapter_step) if run.adapter_step is not None else None
    if after is None and held_out:
        after = held_out[max(held_out)] if max(held_out) > 0 else None
    return {
        "loss": last.get("loss"),
        "before": held_out.get(0),
        "after": after,
        "seconds": elapsed,
        "tokens_per_second": last["num_tokens"] / elapsed if elapsed and "num_tokens" in last else None,
        "memory": last.get("peak_memory_bytes"),
        "step": last.get("step"),
        "epoch": last.get("epoch"),
    }


def _forecast(run: ReportedRun) -> list[tuple[str, str, float, float | None]]:
    """Return (what, how to write it, predicted, measured or None)."""
    predicted, measured = run.prediction.get("predicted", {}), run.prediction.get("measured", {})
    kinds = [("training time", "duration", "train_seconds"), ("peak memory", "bytes", "peak_memory_bytes")]
    return [(what, unit, predicted[key], measured.get(key)) for what, unit, key in kinds if key in predicted]


@dataclass(frozen=True)
class _Asked:
    """One question with its answers."""

    prompt: str
    reference: str | None
    answers: list[tuple[str, str]]
    """(who answered, text)."""
    place: str


def _answers(runs: Sequence[ReportedRun]) -> list[_Asked]:
    """Put answers beside each other: of an evaluation if there is one, else of the first and the last samples."""
    if len(runs) == 1 and runs[0].evaluation.get("answers"):
        return [_evaluated(row) for row in _told_apart(runs[0].evaluation["answers"])]
    asked: dict[str, _Asked] = {}
    for run in runs:
        for row in _first_and_last(run.samples):
            prompt = str(row["prompt"])
            entry = asked.setdefault(prompt, _Asked(prompt, row.get("reference"), [], str(row.get("place", ""))))
            who = "base" if row["step"] == 0 else f"step {row['step']}"
            entry.answers.append((f"{run.name}, {who}" if len(runs) > 1 else who, str(row["text"])))
    return list(itertools.islice(asked.values(), NUM_ANSWERS))


def _told_apart(rows: list[Row]) -> list[Row]:
    """Choose rows at equal distances."""
    last = len(rows) - 1
    num = min(NUM_ANSWERS, len(rows))
    return [rows[i * last // max(1, num - 1)] for i in range(num)]


def _evaluated(row: Row) -> _Asked:
    columns: list[str] = ["base", "tuned"]
    answers = [(who, str(row[who]["text"])) for who in columns if who in row]
    return _Asked(str(row.get("prompt", "")), row.get("reference"), answers, str(row.get("place", "")))


def _first_and_last(samples: list[Row]) -> list[Row]:
    if not samples:
        return []
    steps = {samples[0]["step"], samples[-1]["step"]}
    return [row for row in samples if row["step"] in steps]
