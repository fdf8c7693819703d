"""`lorakeet verify`: proofs, on this machine, that every fast way computes what the plain one does."""

import json
from typing import Annotated

import typer


def command(
    model: Annotated[str | None, typer.Argument(metavar="MODEL|RUN", help="Model or run directory. Default: demo.")] = None,
    data: Annotated[list[str] | None, typer.Argument(help="Rows. Default: the run's own; for a model the demo's.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Make only the proofs that take seconds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the proofs as one JSON object.")] = False,
) -> None:
    """Prove on this machine that what makes training and answers fast leaves their numbers alone.

    Exit status 2 if a proof fails, with what to do. Example: lorakeet verify runs/mine --quick
    """
    from rich.console import Console

    from lorakeet import api, progress
    from lorakeet.proofs.verify import print_table

    with progress.shown():
        found = api.verify(model, data, quick=quick)
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        print_table(found, Console(highlight=False))
    if not found.passed:
        raise typer.Exit(2)
