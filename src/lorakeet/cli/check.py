"""`lorakeet check`: read every row, prove it, and show what would be trained on."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lorakeet.cli import data_flags as flags


def command(
    model: flags.Model = None,
    data: flags.Data = None,
    config: flags.ConfigFile = None,
    assignments: flags.Assignments = None,
    eval_data: flags.EvalData = None,
    format_: flags.Format = None,
    columns: flags.Columns = None,
    roles: flags.Roles = None,
    merge_turns: flags.MergeTurns = None,
    reasoning: flags.ReasoningChoice = None,
    template: flags.TemplateName = None,
    learn: flags.Learn = None,
    system: flags.System = None,
    max_length: flags.MaxLength = None,
    truncation: flags.Truncation = None,
    epochs: flags.Epochs = None,
    max_steps: flags.MaxSteps = None,
    lr: flags.LearningRate = None,
    r: flags.Rank = None,
    adapter: flags.Adapter = None,
    load_in_4bit: flags.LoadIn4bit = None,
    load_in_8bit: flags.LoadIn8bit = None,
    batch_size: flags.BatchSize = None,
    seed: flags.Seed = None,
    examples: Annotated[int, typer.Option(min=0, help="Number of rows to show.")] = 3,
    row: Annotated[str | None, typer.Option(metavar="LINE", help="Show the row at this line only.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report as one HTML file.")] = None,
    calibrate: Annotated[bool, typer.Option(help="Predict time and memory from two steps.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Read every row of DATA, prove what MODEL would be trained on, and show it.

    Example: lorakeet check phi3-mini chats.jsonl --examples 5
    """
    resolved = flags.config_from(locals())
    from lorakeet import api

    result = api.check(config=resolved, num_examples=examples, row=row, calibrate=calibrate, html=html)
    if as_json:
        print(json.dumps(result.report.to_dict()))
    else:
        result.print()
