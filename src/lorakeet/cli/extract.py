"""`lorakeet extract`: an adapter out of two models."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    base: Annotated[str, typer.Argument(help="Base model: alias, directory or hub id.")],
    tuned: Annotated[str, typer.Argument(help="Fine-tuned model: directory or hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; must be new or empty.")],
    r: Annotated[int, typer.Option("--r", help="Rank of the adapter.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Extract from TUNED the LoRA adapter that brings BASE closest to it.

    Example: lorakeet extract phi3-mini my-tuned-phi3 --r 32 -o extracted
    """
    from lorakeet.adapters.extract import extract
    from lorakeet.formatting import count

    made = extract(base, tuned, output, r=r)
    if as_json:
        print(json.dumps(dataclasses.asdict(made), default=str))
        return
    print(f"{count(made.num_layers, 'layer')} of rank {made.r}: {made.directory}")
    print(f"It lacks {made.error:.2%} of the difference; most in {made.worst_layer}: {made.worst_error:.2%}.")
    if made.saved:
        print(f"Saved in full, since they are no linear layers: {', '.join(made.saved)}")
