"""A report that is kept up to date while its run goes on, for a browser on this machine.

data in: run directories → out: a server on loopback that renders the page anew for every request.
"""

import logging
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lorakeet.errors import ConfigError, LorakeetError
from lorakeet.reports.run_report import report_html

logger = logging.getLogger(__name__)


def serve(directories: Sequence[Path], port: int = 0) -> None:
    """Serve the report until interrupted."""
    with build_server(directories, port) as server:
        logger.info("Look at http://127.0.0.1:%d (Ctrl-C ends it).", server.server_port)
        server.serve_forever()


def build_server(directories: Sequence[Path], port: int = 0) -> ThreadingHTTPServer:
    """Open the server.

    Raises: ConfigError E-CFG-251 if the port is taken; what is wrong with the run directories.
    """
    report_html(directories)

    class Handler(_Handler):
        runs = directories

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise ConfigError(
            "E-CFG-251", f"{error.strerror or error}", place=f"--port {port}", fix="Choose another port"
        ) from None


class _Handler(BaseHTTPRequestHandler):
    runs: Sequence[Path]

    def do_GET(self) -> None:
        """Answer with the page; names of other machines are refused, so that no web page can read along."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in ("127.0.0.1", "localhost"):
            self.send_error(403)
        elif self.path != "/":
            self.send_error(404)
        else:
            self._send_page()

    def _send_page(self) -> None:
        try:
            page = report_html(self.runs, live=True).encode()
        except LorakeetError as error:
            self.send_error(500, explain=str(error))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Log no single request."""
