"""`lorakeet report`: one page that explains a run, or compares several."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run directories; the newest run by default.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page; RUN/report.html, or comparison.html for several runs.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page on this machine, kept up to date while a run goes on.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port for --watch; 0 takes a free one.")] = 0,
) -> None:
    """Write one HTML page about a run, or about several side by side. It needs no network to be read.

    Example: lorakeet report runs/mine
    """
    from lorakeet import api
    from lorakeet.reports.watch import serve

    if watch:
        serve(runs or [api.open_run().directory], port)
    else:
        print(api.report(runs or [], output))
