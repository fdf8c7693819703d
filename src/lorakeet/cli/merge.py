"""`lorakeet merge`: the short name of `lorakeet export --format hf`."""

from pathlib import Path
from typing import Annotated

import typer

from lorakeet.cli import export


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; must be new or empty.")],
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32. Default: the base model's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep the model even if it fails its proof.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Write RUN as a plain Hugging Face model directory: short for `lorakeet export --format hf`.

    Example: lorakeet merge runs/mine -o my-model
    """
    export.command(run, "hf", output, dtype=dtype, force=force, as_json=as_json)
