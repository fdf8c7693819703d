"""`lorakeet combine`: several adapters of one base model become one."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    adapters: Annotated[list[Path], typer.Argument(help="Runs or adapter directories over the same base model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; must be new or empty.")],
    weights: Annotated[str | None, typer.Option(help="A weight for each adapter, such as 0.7,0.3. Default: 1 each.")] = None,
    r: Annotated[
        int | None, typer.Option("--r", help="Rank of the result. Default: the sum of the ranks, which is exact.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Write the weighted sum of adapters as one adapter.

    Example: lorakeet combine runs/style runs/facts --weights 0.5,1 -o both
    """
    from lorakeet.adapters.combine import combine, parse_weights
    from lorakeet.formatting import count

    made = combine(adapters, output, weights=parse_weights(weights), r=r)
    if as_json:
        print(json.dumps(dataclasses.asdict(made), default=str))
        return
    print(f"{count(made.num_layers, 'layer')} of rank {made.r}, {made.num_parameters:,} parameters: {made.directory}")
    if r is None:
        print("The sum is exact: the pairs lie side by side.")
    else:
        print(f"Cut to rank {r}, the update has lost {made.error:.2%}; most in {made.worst_layer}: {made.worst_error:.2%}.")
