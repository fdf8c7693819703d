"""`lorakeet demo`: the whole chain on the embedded model and data, with a score before and after."""

import json
from pathlib import Path
from typing import Annotated

import typer

NUM_EXAMPLES = 5


def command(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run directory. Default: a new one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object at the end.")] = False,
) -> None:
    """Teach a small model, SmolLM2-135M in Phi-3's layout, a task it cannot do, in minutes, on this machine.

    Example: lorakeet demo
    """
    from rich.console import Console
    from rich.text import Text

    from lorakeet import api, progress
    from lorakeet.demo_task.outcome import DEMO_METRIC, verdict
    from lorakeet.formatting import command as command_line

    outcome = api.demo(output, say=progress.say)
    out = Console(soft_wrap=True, highlight=False)
    for before, after in outcome.telling_pairs(NUM_EXAMPLES):
        shown = " ".join(before.text.split())
        colour = "green" if after.scores[DEMO_METRIC] else "red"
        out.print(Text("request   ", style="bold") + Text(before.prompt))
        out.print(Text("before    ") + Text(shown if len(shown) <= 100 else shown[:97] + "...", style="dim"))
        out.print(Text("after     ") + Text(after.text, style=colour))
        out.print(Text("expected  ") + Text(after.reference))
        out.print(Text("which is  ") + Text(verdict(before, after), style=colour) + "\n")
    out.print(
        f"Score on held-out requests: {outcome.before.score:.1%} before, {outcome.after.score:.1%} after training.\n"
        f"{outcome.proofs.summary}. All of them: {command_line('verify', outcome.run.directory)}\n\n"
        f"Chat with it:     {command_line('chat', outcome.run.directory)}\n"
        f"Your own data:    {command_line('check', 'phi3-mini', 'chats.jsonl')}\n"
        f"                  {command_line('train', 'phi3-mini', 'chats.jsonl')}"
    )
    if as_json:
        print(json.dumps(outcome.to_dict()))
