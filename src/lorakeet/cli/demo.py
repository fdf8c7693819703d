"""`lorakeet demo`: the whole chain on the embedded model and data, with a score before and after."""

import json
from pathlib import Path
from typing import Annotated

import typer

NUM_EXAMPLES = 5


def command(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run directory; a new one by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object at the end.")] = False,
) -> None:
    """Teach a small model a task it cannot do, in minutes, on this machine.

    Example: lorakeet demo
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lorakeet import api

    console = Console(stderr=True)
    outcome = api.demo(output, say=lambda text: console.print(text, highlight=False))
    # Rows that show the change first: wrong before, right after.
    pairs = list(zip(outcome.before, outcome.after, strict=True))
    pairs.sort(key=lambda pair: pair[0].scores[api.DEMO_METRIC] - pair[1].scores[api.DEMO_METRIC])
    table = Table("request", "before", "after", "expected", show_lines=True)
    step = max(1, len(pairs) // NUM_EXAMPLES)
    for before, after in pairs[::step][:NUM_EXAMPLES]:
        shown = before.text if len(before.text) <= 160 else before.text[:157] + "..."
        colour = "green" if after.scores[api.DEMO_METRIC] else "red"
        table.add_row(Text(before.prompt), Text(shown), Text(after.text, style=colour), Text(after.reference))
    out = Console()
    out.print(table)
    out.print(
        f"Score on held-out requests: {outcome.score_before:.1%} before, {outcome.score_after:.1%} after training.\n\n"
        f"Talk to it:       lorakeet chat {outcome.run.directory}\n"
        f"Your own data:    lorakeet check phi3-mini chats.jsonl\n"
        f"                  lorakeet train phi3-mini chats.jsonl",
        highlight=False,
        soft_wrap=True,
    )
    if as_json:
        print(json.dumps(outcome.to_dict()))
