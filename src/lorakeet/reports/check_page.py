"""The page of `lorakeet check --html`.

data in: CheckResult → out: one HTML file: what was checked and when, the figures, rows with their masks.
"""

import time
from pathlib import Path

from lorakeet.checking.check import CheckResult
from lorakeet.checking.data_record import command_line
from lorakeet.checking.show import report_lines, stretches
from lorakeet.reports.page import render, write_page
from lorakeet.version import __version__


def write_check_page(path: Path, result: CheckResult) -> None:
    """Write the page.

    Raises: ConfigError E-CFG-250 if another file is there, E-CFG-46 if it cannot be written.
    """
    write_page(path, check_html(result))


def check_html(result: CheckResult) -> str:
    """Render a check's page."""
    report, config = result.report, result.config
    return render(
        "check.html",
        model=config.model,
        sources=config.data.train,
        date=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        command=command_line(),
        version=__version__,
        report=report,
        lines=[line for line in report_lines(report) if not line.startswith(("  ", "lengths:"))],
        rows=[(one.example.place, list(stretches(one.example, result.tokenizer))) for one in result.shown],
        most=max((count for _, _, count in report.lengths.histogram), default=1) if report.lengths else 1,
    )
