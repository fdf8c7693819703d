"""The whole of `lorakeet check` but for the prediction, from a configuration to a result that can be printed.

data in: RunConfig → out: CheckResult, and the prepared rows for whoever goes on with them. It joins what data/prepare.py and
the other files of this room do.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorakeet.checking.bad_rows import listing_bad_rows
from lorakeet.checking.report import CheckReport, Shown, Survey
from lorakeet.checking.show import example_text, legend, notebook_html, report_lines
from lorakeet.config import RunConfig
from lorakeet.data.prepare import PreparedData, prepare_data
from lorakeet.data.templates.template import template_for
from lorakeet.data.tokenizer import Tokenizer, load_tokenizer
from lorakeet.errors import ModelError
from lorakeet.models.config_file import load_config
from lorakeet.models.registry import resolve
from lorakeet.models.weights import open_checkpoint


@dataclass(frozen=True)
class CheckResult:
    """A report, the rows to show, the tokenizer they are shown with, and what was checked."""

    report: CheckReport
    shown: list[Shown]
    tokenizer: Tokenizer
    config: RunConfig

    def print(self) -> None:
        """Print the rows and the figures; colours only if a terminal shows them."""
        from rich.console import Console

        console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
        colour = console.color_system is not None and "NO_COLOR" not in os.environ
        if self.shown:
            console.print(legend(colour=colour), end="\n\n")
        for shown in self.shown:
            console.print(f"── {shown.example.place}", style="bold" if colour else "")
            console.print(example_text(shown, self.tokenizer, colour=colour))
            console.print()
        for line in report_lines(self.report):
            console.print(line)

    def _repr_html_(self) -> str:
        return notebook_html(self.report, self.shown, self.tokenizer)


def check_rows(
    config: RunConfig, *, num_examples: int = 3, row: str | None = None, on_progress: Callable[[int, int], None] | None = None
) -> tuple[CheckResult, PreparedData]:
    """Prepare a run's rows as training does, and report on them.

    Args:
        num_examples: how many rows to show.
        row: the row to show instead, as "17" or "file:17".
        on_progress: called with (rows done, rows in all).
    Raises: BadRowsError if rows cannot be used; LorakeetError at the first other thing that is wrong.
    """
    directory = resolve(config.model)
    longest, tokenizer = model_limit(directory), load_tokenizer(directory)
    template = template_for(tokenizer, name=config.data.template)
    survey = Survey(num_examples, row)
    with listing_bad_rows() as on_bad_row:
        data = prepare_data(config, tokenizer, template, longest, on_progress, survey.add, on_bad_row)
    report = survey.report(data.findings, template=template.name, learn=config.data.learn)
    return CheckResult(report, survey.shown, tokenizer, config), data


def model_limit(directory: Path) -> int:
    """Return the longest sequence that the model was made for.

    Raises: ModelError if the model cannot be trained; its weights alone may be missing, for they are not needed here.
    """
    try:
        open_checkpoint(directory)
    except ModelError as error:
        if error.code != "E-MODEL-108":
            raise
    return load_config(directory).max_position_embeddings
