"""What every HTTP request passes before a route sees it: host, origin, key, kind, size and encoding of its body, and its time.

data in: ASGI messages → out: the same, the body already whole; or an error in OpenAI's form. It knows no routes but the
open ones, which hold nothing of anyone's.
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from lorakeet.serve.limits import Access, Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/health")
"""Answered without a key: the page, which asks for the key, and whether the server lives."""

_CLOSE = {"connection": "close"}


def error_response(
    status: int, message: str, *, code: str | None = None, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return an error in OpenAI's form."""
    kind = (
        "invalid_request_error" if status < 500 and status != 429 else "rate_limit_error" if status == 429 else "server_error"
    )
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)


class Gate:
    """Middleware around the whole application."""

    def __init__(self, app: App, access: Access, limits: Limits, on_answer: Callable[[str, int], None]) -> None:
        self.app, self.access, self.limits, self.on_answer = app, access, limits, on_answer

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        if refusal is None and scope["method"] in ("POST", "PUT", "PATCH"):
            body = await self._body(receive)
            if isinstance(body, JSONResponse):
                refusal = body
            elif body is None:
                return
            else:
                receive = _replay(body, receive)
        statuses: list[int] = []

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        try:
            await (refusal or self.app)(scope, receive, noted)
        finally:
            # By route, not by path: a stranger's paths would be a number each.
            self.on_answer(getattr(scope.get("route"), "path", "other"), statuses[0] if statuses else 499)

    def _refusal(self, method: str, path: str, headers: Headers) -> JSONResponse | None:
        """Judge a request by its headers."""
        host = headers.get("host", "")
        if self.access.hosts and _name(host) not in self.access.hosts:
            return error_response(403, "this host name is not served here; start the server with --allowed-host", code="host")
        origin = headers.get("origin")
        if origin is not None and origin not in self.access.origins and urlsplit(origin).netloc != host:
            return error_response(403, "this origin may not ask; start the server with --allowed-origin", code="origin")
        if method != "OPTIONS" and path not in OPEN_PATHS and not self._has_key(headers.get("authorization", "")):
            return error_response(
                401, "wrong or missing API key", code="invalid_api_key", headers={"www-authenticate": "Bearer"}
            )
        if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return error_response(415, "the body must be of type application/json", code="content_type")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            return self._too_large()
        return None

    def _has_key(self, authorization: str) -> bool:
        if self.access.api_key is None:
            return True
        scheme, _, key = authorization.partition(" ")
        # In constant time, so that the answer's delay reveals nothing of the key.
        return scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode("latin-1"), self.access.api_key.encode())

    def _too_large(self) -> JSONResponse:
        text = f"the body has more than {self.limits.body_bytes} bytes"
        return error_response(413, text, code="body_too_large", headers=_CLOSE)  # else the rest of it would be read

    async def _body(self, receive: Receive) -> bytes | JSONResponse | None:
        """Read the whole body in its time; None if the client has left."""
        body = bytearray()
        deadline = asyncio.get_running_loop().time() + self.limits.body_seconds
        while True:
            try:
                left = deadline - asyncio.get_running_loop().time()
                message = await asyncio.wait_for(receive(), max(left, 0))
            except (asyncio.TimeoutError, TimeoutError):
                text = f"the body did not arrive within {self.limits.body_seconds:g} s"
                return error_response(408, text, code="slow_client", headers=_CLOSE)
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.limits.body_bytes:
                return self._too_large()
            if not message.get("more_body", False):
                if _is_unicode(bytes(body)):
                    return bytes(body)
                return error_response(400, "the body is not UTF-8, or names half of a surrogate pair", code="unicode")


def _is_unicode(body: bytes) -> bool:
    """Tell whether a body and its texts are Unicode: Python's JSON lets halves of surrogate pairs through, no encoder does."""
    try:
        body.decode()
        if b"\\ud" in body.lower():
            json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeError:
        return False
    except (ValueError, RecursionError):  # no JSON: said by whoever reads it
        return True
    return True


def _name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that hands over a body that was read already, and then what really comes."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
