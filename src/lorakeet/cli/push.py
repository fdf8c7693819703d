"""`lorakeet push`: a run onto the hub."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub.")],
    merged: Annotated[bool, typer.Option("--merged", help="Push the merged model instead of the adapter.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Add a commit to a repository that already holds files.")] = False,
    base_model: Annotated[str | None, typer.Option(help="Hub id of the base model, if it was a local directory.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the files locally and push nothing.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where --dry-run writes. Default: RUN/push.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Push even if the proof fails.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Push RUN's adapter to the Hugging Face hub, proven and with a model card.

    The token is HF_TOKEN or that of `hf auth login`.

    Example: lorakeet push runs/mine me/my-adapter --private
    """
    from lorakeet import api
    from lorakeet.exports.hub import describe

    where = (output or run / "push") if dry_run else None
    pushed = api.open_run(run).push(
        repo_id, merged=merged, private=private, update=update, base_model=base_model, dry_run=where, force=force
    )
    print(json.dumps(dataclasses.asdict(pushed), default=str) if as_json else "\n".join(describe(pushed)))
