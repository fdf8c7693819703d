"""`lorakeet export`: a run in the form that another program loads, proven with that program."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    form: Annotated[str, typer.Option("--format", help="What to write; a wrong name lists what there is.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="What to write; nothing that exists is overwritten.")],
    dtype: Annotated[str | None, typer.Option(help="How weights are stored; the format's own default if left out.")] = None,
    with_adapter: Annotated[bool, typer.Option("--with-adapter", help="ollama: base and adapter apart.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Keep an artefact that fails the parity gate.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Write RUN for another program, and prove with that program that it answers as RUN does.

    Example: lorakeet export runs/mine --format gguf -o mine.gguf
    """
    from lorakeet import api
    from lorakeet.exports.export import describe

    exported = api.open_run(run).export(form, output, dtype=dtype, with_adapter=with_adapter, force=force)
    if as_json:
        print(json.dumps({**dataclasses.asdict(exported), "path": str(exported.path)}))
    else:
        print("\n".join(describe(exported)))
