"""`lorakeet serve`: answer programs that speak OpenAI's interface, with any number of adapters over one base."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN or MODEL ...]", help="Runs over one base, or a model; the newest run by default."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address; any but a loopback one needs an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="LORAKEET_API_KEY", help="Key that clients must send.")] = None,
    adapters: Annotated[
        list[Path] | None, typer.Option(help="Folder from which adapters may be loaded while it runs; may be repeated.")
    ] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help="Host name that requests may be addressed to.")] = None,
    allowed_origin: Annotated[list[str] | None, typer.Option(help="Web page that may ask, as https://example.org.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 4096,
    max_open: Annotated[int, typer.Option(min=1, help="Answers waiting or being written at once.")] = 256,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Hold a 16-bit base model in 4 bits.")] = False,
) -> None:
    """Serve a tuned model (or any other) to OpenAI's clients.

    Example: lorakeet serve runs/mine
    """
    from lorakeet import api
    from lorakeet.serve.limits import LOOPBACK, Access, Limits

    hosts = (*LOOPBACK, *(allowed_host or ())) if host in LOOPBACK or allowed_host else ()
    access = Access(api_key or None, hosts, tuple(allowed_origin or ()), tuple(adapters or ()))
    limits = Limits(max_tokens=max_tokens, max_open=max_open)
    api.serve(runs or (), host=host, port=port, access=access, limits=limits, load_in_4bit=load_in_4bit)
