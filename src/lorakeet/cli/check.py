"""`lorakeet check`: read every row, prove it, and show what would be learned."""

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="Alias, directory or hub id; `demo` needs no download.")],
    data: Annotated[list[str], typer.Argument(help="Files, directories, hub ids, or `demo`.")],
    eval_data: Annotated[list[str] | None, typer.Option(help="Evaluation data, to find rows shared with DATA.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="Row format, where the keys do not tell it.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="A field's name in the rows.")
    ] = None,
    roles: Annotated[list[str] | None, typer.Option(metavar="THEIRS=OURS", help="A role's name in the rows.")] = None,
    template: Annotated[str | None, typer.Option(help="Chat template, where the model does not tell it.")] = None,
    learn: Annotated[str, typer.Option(help="all (assistant turns), last, marked, or text.")] = "all",
    system: Annotated[str | None, typer.Option(help="System prompt for every conversation.")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Longest conversation, in tokens.")] = None,
    truncation: Annotated[str, typer.Option(help="error, drop or truncate-left.")] = "error",
    examples: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    row: Annotated[str | None, typer.Option(metavar="LINE", help="Show the row at this line instead.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report as one HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Read every row of DATA, prove what MODEL would learn from it, and show it.

    Example: lorakeet check phi3-mini chats.jsonl --examples 5
    """
    from lorakeet.config import pairs
    from lorakeet.data.checking import Options, run_check
    from lorakeet.models.registry import resolve

    options = Options(
        model_directory=resolve(model),
        data=data,
        eval_data=eval_data or [],
        format=format_,
        columns=pairs("--columns", columns),
        roles=pairs("--roles", roles),
        template=template,
        learn=learn,
        system=system,
        max_length=max_length,
        truncation=truncation,
        num_examples=examples,
        row=row,
    )
    result = run_check(options, demo=_demo)
    if html is not None:
        result.write_html(html)
    if as_json:
        print(json.dumps(result.report.to_dict()))
    else:
        result.print()


def _demo(split: str) -> list:
    """The embedded conversations, for DATA `demo`."""
    from lorakeet.embedded import toolcalls

    return toolcalls.training_conversations() if split == "train" else toolcalls.held_out_conversations()
