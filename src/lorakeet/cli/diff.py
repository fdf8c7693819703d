"""`lorakeet diff`: in what two runs differ."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    other: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the differences as one JSON object.")] = False,
) -> None:
    """Compare two runs: configuration, data, base model, versions, and the step at which their numbers part.

    Example: lorakeet diff runs/mine runs/again
    """
    from lorakeet import api
    from lorakeet.reports.difference import describe

    found = api.diff(run, other)
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
    else:
        print("\n".join(describe(found, (run.name, other.name))))
