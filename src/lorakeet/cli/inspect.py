"""`lorakeet inspect`: what an adapter is, and who will take it."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    path: Annotated[Path, typer.Argument(help="Run, or adapter directory in PEFT's format.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show an adapter's rank, layers, size, base and origin, and which programs can load it.

    Example: lorakeet inspect runs/mine
    """
    from lorakeet.adapters.inspection import describe, inspect

    found = inspect(path)
    print(json.dumps(dataclasses.asdict(found), default=str) if as_json else "\n".join(describe(found)))
