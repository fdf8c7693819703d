"""`lorakeet reproduce`: train an adapter again from what it carries, and compare."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    adapter: Annotated[Path, typer.Argument(help="Run or adapter directory, with its lorakeet.json.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run directory. Default: a new one.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="File or directory to look for the data in, if it was moved. Repeatable.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the base model is, if it was moved.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a repetition that was stopped.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> int:
    """Train ADAPTER again from its record, and say whether it comes to the same: to the bit, or within rounding.

    Example: lorakeet reproduce runs/mine -o runs/again
    """
    from lorakeet import api, dist
    from lorakeet.reports.reproduction import describe

    found = api.reproduce(adapter, output, data=data or (), model=model, resume=resume)
    if not dist.is_main():
        return 0
    if as_json:
        print(
            json.dumps(
                {"is_reproduced": found.is_reproduced, "is_equal": found.is_equal, **dataclasses.asdict(found)}, default=str
            )
        )
    else:
        print("\n".join(describe(found)))
    return 0 if found.is_reproduced else 2
