"""`lorakeet report`: one page that explains a run, or compares several."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run directories. Default: the newest run.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write. Default: RUN/report.html; comparison.html for several runs."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page on this machine and update it while a run goes on.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port for --watch; 0 takes a free one.")] = 0,
) -> None:
    """Write an HTML page about a run, or about several side by side; it works offline.

    Example: lorakeet report runs/mine
    """
    from lorakeet import api
    from lorakeet.reports.watch import serve

    if watch:
        serve(runs or [api.open_run().directory], port)
    else:
        print(api.report(runs or [], output))
