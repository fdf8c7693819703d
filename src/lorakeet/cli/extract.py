"""`lorakeet extract`: an adapter out of two models."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    base: Annotated[str, typer.Argument(help="The base model: a short name, a directory, or a hub id.")],
    tuned: Annotated[str, typer.Argument(help="The same model after tuning, in full.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; it must not exist or be empty.")],
    r: Annotated[int, typer.Option("--r", help="Rank of the adapter.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Write the adapter that brings BASE closest to TUNED within a rank, and say how close.

    Example: lorakeet extract phi3-mini my-tuned-phi3 --r 32 -o extracted
    """
    from lorakeet.adapters.extract import extract

    made = extract(base, tuned, output, r=r)
    if as_json:
        print(json.dumps(dataclasses.asdict(made), default=str))
        return
    print(f"{made.num_layers} layers of rank {made.r}: {made.directory}")
    print(f"It lacks {made.error:.2%} of the difference; most in {made.worst_layer}: {made.worst_error:.2%}.")
    if made.saved:
        print(f"Saved in full, since they are no linear layers: {', '.join(made.saved)}")
