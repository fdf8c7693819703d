"""`lorakeet merge`: base model and adapter become one plain model."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; it must not exist or be empty.")],
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32; that of the base by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Write RUN as a plain Hugging Face model directory.

    Example: lorakeet merge runs/mine -o my-model
    """
    from lorakeet import api

    merged = api.open_run(run).merge(output, dtype=dtype)
    if as_json:
        print(
            json.dumps(
                {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(merged).items()}
            )
        )
    else:
        print(f"{merged.num_merged} weights merged, in {merged.dtype}: {merged.directory}")
        if merged.drift is not None:
            print(
                f"Trained over a quantised base, merged into the 16-bit one: their next-token distributions differ by "
                f"{merged.drift.mean_kl:.4f} nats on average, {merged.drift.max_kl:.4f} at most."
            )
        print(f"Talk to it: lorakeet chat {merged.directory}")
