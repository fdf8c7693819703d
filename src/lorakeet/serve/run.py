"""The process of the server: its socket, its signals, its end.

data in: an application and an address → out: nothing, until SIGINT or SIGTERM; what is being answered then is finished.
"""

import signal
import sys

from fastapi import FastAPI

from lorakeet.errors import ServerError
from lorakeet.serve.limits import LOOPBACK, Access


def check_access(host: str, access: Access) -> None:
    """Raise ServerError E-SRV-285 for an address that others reach, without a key."""
    if host not in LOOPBACK and not access.api_key:
        raise ServerError(
            "E-SRV-285", f"{host} can be reached from other machines", fix="Set LORAKEET_API_KEY, or serve on 127.0.0.1"
        )


def run_app(app: FastAPI, host: str, port: int, *, drain_seconds: float = 30.0) -> None:
    """Serve until a signal stops it."""
    import uvicorn

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(drain_seconds),
        limit_concurrency=2048,
    )
    print(f"Serving on http://{host}:{port}/ (Ctrl-C ends it)", file=sys.stderr, flush=True)
    # uvicorn raises the signal again when all is answered; SIGTERM has then done what it should.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        uvicorn.Server(config).run()
    finally:
        signal.signal(signal.SIGTERM, before)
