"""How tests and the load benchmark ask the server: one request, or many at once while the engine is held."""

import asyncio
import contextlib
import json
import threading
import time

import httpx

CHAT = {"model": "one", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}
JSON = {"content-type": "application/json"}


def post(url, body=None, *, path="/v1/chat/completions", headers=JSON, **changes):
    content = json.dumps({**CHAT, **changes}) if body is None else body
    return httpx.post(url + path, content=content, headers=headers, timeout=30)


def request_of(url, **changes):
    """A whole request as bytes; the connection ends with its answer."""
    body = json.dumps({**CHAT, **changes}).encode()
    host = url.removeprefix("http://")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def ask_all(url, requests):
    """Send all requests at once, each over a connection of its own; return status and body of each, in their order."""
    host, port = url.removeprefix("http://").split(":")

    async def ask(request):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), head, body

    async def together():
        return await asyncio.wait_for(asyncio.gather(*map(ask, requests)), 120)

    return asyncio.run(together())


@contextlib.contextmanager
def held(app):
    """Hold the engine, so that all that is asked meanwhile waits."""
    go_on = threading.Event()
    app.state.server.worker.call(lambda: go_on.wait(60))
    try:
        yield
    finally:
        go_on.set()


def wait_until(is_so, seconds=20):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
