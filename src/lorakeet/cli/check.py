"""`lorakeet check`: read every row, prove it, and show what would be learned."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakeet.cli import data_flags as flags

if TYPE_CHECKING:
    from lorakeet.checking.report import CheckReport
    from lorakeet.config import RunConfig


def command(
    model: flags.Model = None,
    data: flags.Data = None,
    config: flags.ConfigFile = None,
    assignments: flags.Assignments = None,
    eval_data: flags.EvalData = None,
    format_: flags.Format = None,
    columns: flags.Columns = None,
    roles: flags.Roles = None,
    merge_turns: flags.MergeTurns = False,
    reasoning: flags.ReasoningChoice = None,
    template: flags.TemplateName = None,
    learn: flags.Learn = None,
    system: flags.System = None,
    max_length: flags.MaxLength = None,
    truncation: flags.Truncation = None,
    examples: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    row: Annotated[str | None, typer.Option(metavar="LINE", help="Show the row at this line instead.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report as one HTML file.")] = None,
    calibrate: Annotated[
        bool, typer.Option(help="Load the model and predict time and memory of training, from two steps.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Read every row of DATA, prove what MODEL would learn from it, and show it.

    Example: lorakeet check phi3-mini chats.jsonl --examples 5
    """
    from lorakeet.checking.check import Options, run_check
    from lorakeet.config import resolve_config
    from lorakeet.models.registry import resolve

    sections: dict[str, dict[str, Any]] = {
        "training_config": {"max_length": max_length},
        "data": flags.data_section(
            data,
            eval=eval_data,
            format=format_,
            columns=columns,
            roles=roles,
            merge_turns=merge_turns or None,
            reasoning=reasoning,
            template=template,
            learn=learn,
            system=system,
            truncation=truncation,
        ),
    }
    resolved = resolve_config(file=config, model=model, flags=sections, assignments=assignments or [])
    chosen = resolved.data
    options = Options(
        model_directory=resolve(resolved.model),
        data=chosen.train,
        eval_data=chosen.eval or [],
        format=chosen.format,
        columns=chosen.columns,
        roles=chosen.roles,
        merge_turns=chosen.merge_turns,
        reasoning=chosen.reasoning,
        template=chosen.template,
        learn=chosen.learn,
        system=chosen.system,
        max_length=resolved.training_config.max_length,
        truncation=chosen.truncation,
        num_examples=examples,
        row=row,
    )
    result = run_check(options, demo=_demo)
    if calibrate:
        _predict(result.report, resolved)
    if html is not None:
        result.write_html(html)
    if as_json:
        print(json.dumps(result.report.to_dict()))
    else:
        result.print()


def _predict(report: "CheckReport", config: "RunConfig") -> None:
    """Put the prediction into the report; without weights there is none, and the rest of the check still counts."""
    from lorakeet import api
    from lorakeet.errors import ModelError

    try:
        report.cost = api.predict(config).to_dict()
    except ModelError as error:
        print(f"Time and memory are not predicted: {error}", file=sys.stderr)


def _demo(split: str) -> list:
    """The embedded conversations, for DATA `demo`."""
    from lorakeet.data.prepare import demo_rows

    return demo_rows("train" if split == "train" else "held_out")
