"""`lorakeet doctor`: what this machine and this installation can do, and what to do about the rest."""

import json
from typing import Annotated

import typer


def command(as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False) -> None:
    """Examine Python, devices, precision, compilers, packages, memory and disk, and say what to do.

    Changes nothing and uses no network. Example: lorakeet doctor
    """
    from rich.console import Console

    from lorakeet.doctor.examine import examine
    from lorakeet.doctor.finding import to_dict
    from lorakeet.doctor.show import print_findings

    findings = examine()
    if as_json:
        print(json.dumps(to_dict(findings)))
    else:
        print_findings(findings, Console(soft_wrap=True, highlight=False))
