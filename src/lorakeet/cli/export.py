"""`lorakeet export`: a run in the form that another program loads, proven with that program."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    form: Annotated[str, typer.Option("--format", help="hf, gguf, gguf-adapter, ollama, peft, peft-split or vllm.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File or directory to write; nothing is overwritten.")],
    dtype: Annotated[str | None, typer.Option(help="Type of the weights. Default: the format's own.")] = None,
    with_adapter: Annotated[bool, typer.Option("--with-adapter", help="For ollama: keep base and adapter apart.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Keep the export even if it fails its proof.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Export RUN for another program, and prove with that program that it answers as RUN does.

    Example: lorakeet export runs/mine --format gguf -o mine.gguf
    """
    from lorakeet import api, progress
    from lorakeet.exports.export import describe

    with progress.shown():
        exported = api.open_run(run).export(form, output, dtype=dtype, with_adapter=with_adapter, force=force)
    if as_json:
        print(json.dumps({**dataclasses.asdict(exported), "path": str(exported.path)}))
    else:
        print("\n".join(describe(exported)))
