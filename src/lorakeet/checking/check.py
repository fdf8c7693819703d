"""The whole of `lorakeet check`, from options to a result that can be printed.

data in: Options → out: CheckResult. It joins what the other files of this package do; it does no work of its own.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from lorakeet.checking.report import CheckReport, Shown, check
from lorakeet.checking.show import example_text, legend, report_html, report_lines
from lorakeet.data.conversation import Conversation, with_system_prompt
from lorakeet.data.encode import Learn, Truncation
from lorakeet.data.encode_all import encode_stream
from lorakeet.data.formats import Notes, Reasoning
from lorakeet.data.read import read_conversations
from lorakeet.data.split import refuse_overlap
from lorakeet.data.templates.template import template_for
from lorakeet.data.tokenizer import Tokenizer, load_tokenizer
from lorakeet.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    model_directory: Path
    data: list[str]
    eval_data: list[str] = field(default_factory=list)
    format: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    merge_turns: bool = False
    reasoning: Reasoning | None = None
    template: str | None = None
    learn: str = "all"
    system: str | None = None
    max_length: int | None = None
    """The model's own limit where it is None."""
    truncation: str = "error"
    num_examples: int = 3
    row: str | None = None


@dataclass(frozen=True)
class CheckResult:
    """A report, the rows to show, and the tokenizer they are shown with."""

    report: CheckReport
    shown: list[Shown]
    tokenizer: Tokenizer

    def print(self) -> None:
        """Print the rows and the figures; colours only where a terminal shows them."""
        from rich.console import Console

        console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
        colour = console.color_system is not None and "NO_COLOR" not in os.environ
        if self.shown:
            console.print(legend(colour=colour), end="\n\n")
        for shown in self.shown:
            console.print(f"── {shown.conversation.place}", style="bold" if colour else "")
            console.print(example_text(shown, self.tokenizer, colour=colour))
            console.print()
        for line in report_lines(self.report):
            console.print(line)

    def write_html(self, path: Path) -> None:
        """Write report and rows as one HTML file. Raises ConfigError if that is not possible."""
        try:
            path.write_text(report_html(self.report, self.shown, self.tokenizer), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                "E-CFG-46", f"cannot be written: {error.strerror}", place=str(path), fix="Choose another path"
            ) from None


def run_check(options: Options, *, demo: Callable[[str], Iterable[Conversation]] | None = None) -> CheckResult:
    """Check data against a model. `demo` gives the conversations that the source "demo" stands for.

    Raises LorakeetError at the first thing that is wrong.
    """
    _check_choice("--learn", options.learn, get_args(Learn))
    _check_choice("--truncation", options.truncation, get_args(Truncation))
    tokenizer = load_tokenizer(options.model_directory)
    template = template_for(tokenizer, name=options.template)
    notes = Notes()
    choices: dict[str, Any] = {
        "learn": options.learn,
        "max_length": options.max_length or model_limit(options.model_directory),
        "truncation": options.truncation,
    }
    if options.eval_data:
        for _ in encode_stream(_read_eval(options, demo), tokenizer, template, **choices):
            pass  # proves every row
        refuse_overlap(_read(options, options.data, "train", Notes(), demo), _read_eval(options, demo))

    is_watched = sys.stderr.isatty()
    try:
        report, shown = check(
            _read(options, options.data, "train", notes, demo),
            tokenizer,
            template,
            notes=notes,
            num_examples=options.num_examples,
            row=options.row,
            on_progress=_progress if is_watched else None,
            **choices,
        )
    finally:
        if is_watched:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return CheckResult(report, shown, tokenizer)


def _check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError("E-CFG-124", f'{flag} is "{value}"', fix=f"Choose one of {', '.join(choices)}")


def _progress(num_rows: int) -> None:
    print(f"\r{num_rows:,} rows", end="", file=sys.stderr, flush=True)


def model_limit(directory: Path) -> int | None:
    """Read the longest sequence the model was made for from its config.json; None where it does not say."""
    try:
        config: Any = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        limit = config.get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return limit if isinstance(limit, int) and limit > 0 else None


def _read_eval(options: Options, demo: Callable[[str], Iterable[Conversation]] | None) -> Iterator[Conversation]:
    return _read(options, options.eval_data, "eval", Notes(), demo)


def _read(
    options: Options, sources: list[str], split: str, notes: Notes, demo: Callable[[str], Iterable[Conversation]] | None
) -> Iterator[Conversation]:
    """Read all sources in turn, with the system prompt put in its place."""
    for source in sources:
        rows: Iterable[Conversation]
        if source == "demo" and demo is not None:
            rows = demo(split)
        else:
            rows = read_conversations(
                source,
                format=options.format,
                columns=options.columns,
                roles=options.roles,
                merge_turns=options.merge_turns,
                reasoning=options.reasoning,
                notes=notes,
            )
        for row in rows:
            yield row if options.system is None else with_system_prompt(row, options.system, replace_existing=True)
