"""The flags that say what to learn from, the same for every command that reads rows."""

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str | None, typer.Argument(help="Alias, directory or hub id; `demo` needs no download.")]
Data = Annotated[list[str] | None, typer.Argument(help="Files, directories, hub ids, or `demo`.")]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file, such as an earlier RUN/config.yaml.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key; may be repeated.")
]
EvalData = Annotated[list[str] | None, typer.Option(help="Held-out data; else a part of DATA is held out.")]
Format = Annotated[str | None, typer.Option("--format", help="Row format, where the keys do not tell it.")]
Columns = Annotated[list[str] | None, typer.Option(metavar="OURS=THEIRS", help="A field's name in the rows.")]
Roles = Annotated[list[str] | None, typer.Option(metavar="THEIRS=OURS", help="A role's name in the rows.")]
MergeTurns = Annotated[bool, typer.Option("--merge-turns", help="Join turns of one role that follow each other.")]
ReasoningChoice = Annotated[str | None, typer.Option("--reasoning", help="keep or drop reasoning in a field of its own.")]
TemplateName = Annotated[str | None, typer.Option(help="Chat template, where the model does not tell it.")]
Learn = Annotated[str | None, typer.Option(help="all (assistant turns), last, marked, or text.")]
System = Annotated[str | None, typer.Option(help="System prompt put in front of every conversation.")]
MaxLength = Annotated[int | None, typer.Option(help="Longest conversation, in tokens.")]
Truncation = Annotated[str | None, typer.Option(help="error, drop or truncate-left.")]


def data_section(train: list[str] | None, *, columns: list[str] | None, roles: list[str] | None, **keys: Any) -> dict[str, Any]:
    """Return the `data` section of a configuration as the flags have it; what is None was not said."""
    from lorakeet.config import pairs

    return {"train": train or None, "columns": pairs("--columns", columns), "roles": pairs("--roles", roles), **keys}
