"""`lorakeet serve`: answer programs that speak OpenAI's interface, with any number of adapters over one base."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN or MODEL", help="Runs over one base, or a model. Default: the newest finished run."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but a loopback address needs --api-key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="LORAKEET_API_KEY", help="API key that clients must send.")] = None,
    adapters: Annotated[list[Path] | None, typer.Option(help="Folder whose adapters clients may load. Repeatable.")] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help="Host name that clients may use. Repeatable.")] = None,
    allowed_origin: Annotated[list[str] | None, typer.Option(help="Origin of web pages that may ask. Repeatable.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens to generate.")] = 4096,
    max_open: Annotated[int, typer.Option(min=1, help="Maximum number of requests at once, waiting ones included.")] = 256,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Load the base model in 4-bit.")] = False,
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="Load the base model in 8-bit.")] = False,
) -> None:
    """Serve runs over one base, or any other model, with an OpenAI-compatible API.

    Example: lorakeet serve runs/mine
    """
    from lorakeet import api
    from lorakeet.serve.limits import LOOPBACK, Access, Limits

    hosts = (*LOOPBACK, *(allowed_host or ())) if host in LOOPBACK or allowed_host else ()
    access = Access(api_key or None, hosts, tuple(allowed_origin or ()), tuple(adapters or ()))
    limits = Limits(max_tokens=max_tokens, max_open=max_open)
    bits = {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
    api.serve(runs or (), host=host, port=port, access=access, limits=limits, **bits)
