"""Findings as text for a terminal: a line each, the steps to take at the end."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from lorakeet.doctor.finding import Finding, advice

MARKS = {"ok": ("✓", "green"), "note": ("!", "yellow"), "problem": ("✗", "red")}


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print findings by group, then what to do, problems first."""
    for group, members in groupby(findings, key=lambda one: one.group):
        console.print(Text(group.capitalize(), style="bold"))
        for one in members:
            mark, colour = MARKS[one.state]
            console.print(Text(f"  {mark} ", style=colour) + Text(one.text))
    steps = advice(findings)
    console.print(Text("What to do" if steps else "Nothing to do.", style="bold"))
    for one in steps:
        console.print(Text(f"  {MARKS[one.state][0]} ", style=MARKS[one.state][1]) + Text(f"{one.fix}."))
