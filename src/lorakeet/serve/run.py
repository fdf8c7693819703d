"""The process of the server: its socket, its signals, its end, and what it says when it begins.

data in: an application and a socket → out: nothing, until SIGINT or SIGTERM; what is being answered then is finished.
"""

import json
import signal
import socket
import sys
from typing import Any

from fastapi import FastAPI

from lorakeet.errors import ServerError
from lorakeet.serve.limits import LOOPBACK, Access

KEY_VARIABLE = "LORAKEET_API_KEY"
UNREAD_SECONDS = 60
"""A connection whose client takes nothing of what is written for so long is ended, if the system knows how (Linux)."""

HEAD_SECONDS = 10
"""Time in which the first request of a connection must begin; for ever, uvicorn would say."""


def check_access(host: str, access: Access) -> None:
    """Raise ServerError E-SRV-285 for an address that others reach, without a key."""
    if host not in LOOPBACK and not access.api_key:
        raise ServerError(
            "E-SRV-285", f"{host} can be reached from other machines", fix=f"Set {KEY_VARIABLE}, or serve on 127.0.0.1"
        )


def bound_socket(host: str, port: int) -> socket.socket:
    """Take a port, on which nobody is answered before `run_app`. Raises: ServerError E-SRV-287 if it is not free."""
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # of the connections too, which inherit it
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        reason = f"cannot listen on {host} port {port}: {error.strerror or error}"
        raise ServerError("E-SRV-287", reason, fix="Name another port with --port") from None
    return taken


def run_app(app: FastAPI, taken: socket.socket, model: str, *, drain_seconds: float = 30.0) -> None:
    """Serve on a bound socket until a signal stops it; `model` is the name that the example asks."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http=protocol(),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(drain_seconds),
        limit_concurrency=2048,
    )
    host, port = taken.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    has_key = app.state.server.access.api_key is not None
    lines = example(url, model, has_key=has_key)
    taken.listen(2048)  # who asks before the loop runs waits
    print(f"Serving on {url}/ (Ctrl-C ends it). Ask it from Python (pip install openai):\n\n{lines}", file=sys.stderr)
    # uvicorn raises the signal again when all is answered; SIGTERM has then done what it should.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        uvicorn.Server(config).run(sockets=[taken])
    finally:
        signal.signal(signal.SIGTERM, before)


def protocol() -> Any:
    """Return uvicorn's HTTP protocol, closing connections on which nothing is asked in time: only so many are held at once."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base: Any = AutoHTTPProtocol

    class Protocol(base):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(HEAD_SECONDS, self.close_if_unasked)

        def close_if_unasked(self) -> None:
            if self.cycle is None:
                self.transport.close()

    return Protocol


def example(url: str, model: str, *, has_key: bool) -> str:
    """Return lines of Python that ask the server, to be copied as they are; the answer is that of `lorakeet chat`."""
    key = f'os.environ["{KEY_VARIABLE}"]' if has_key else '"none"'
    return f"""import openai{", os" if has_key else ""}
client = openai.OpenAI(base_url="{url}/v1", api_key={key})
question = [{{"role": "user", "content": "Hello"}}]
reply = client.chat.completions.create(model={json.dumps(model)}, messages=question, temperature=0)
print(reply.choices[0].message.content)
"""
