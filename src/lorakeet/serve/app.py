"""The application: its routes, its middleware, and what every error looks like.

data in: a base model with adapters, who may ask, and for how much → out: an ASGI application in OpenAI's interface. What the
routes do is in routes.py.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from lorakeet.errors import LorakeetError, MissingExtraError
from lorakeet.infer.prefixes import usual_bytes
from lorakeet.serve import schemas
from lorakeet.serve.gate import Gate, error_response
from lorakeet.serve.limits import Access, Limits
from lorakeet.serve.routes import Server
from lorakeet.serve.served import Served
from lorakeet.serve.worker import Worker
from lorakeet.version import __version__

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorBody} for status in (400, 401, 403, 404, 408, 413, 415, 429, 500, 501, 503, 504)
}
STATUSES = {
    "E-SRV-270": 404,
    "E-SRV-277": 403,
    "E-SRV-278": 504,
    "E-SRV-279": 503,
    "E-SRV-280": 429,
    "E-SRV-288": 500,
    "E-MODEL-120": 500,
}
"""HTTP status by an error's code; 400 for all others."""
OPENAI_CODES = {"E-SRV-270": "model_not_found", "E-SRV-272": "context_length_exceeded", "E-CFG-44": "context_length_exceeded"}
"""Codes that OpenAI's clients look at, in place of ours."""


def create_app(
    served: Served, *, access: Access | None = None, limits: Limits | None = None, prefix_bytes: int | None = None
) -> FastAPI:
    """Build the application; its engine's thread ends with it.

    Args:
        prefix_bytes: memory for beginnings of prompts; by default `usual_bytes`.
    """
    access, limits = access or Access(), limits or Limits()
    if prefix_bytes is None:
        prefix_bytes = usual_bytes()
    server = Server(served, Worker(served.model, prefix_bytes=prefix_bytes), access, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(server.worker.close)

    app = FastAPI(title="lorakeet", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, responses=ERRORS)
    app.state.server = server
    _add_routes(app, server)
    _add_error_forms(app)
    app.add_middleware(Gate, access=access, limits=limits, on_answer=server.metrics.answered)
    if access.origins:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(CORSMiddleware, allow_origins=access.origins, allow_methods=["*"], allow_headers=["*"])
    return app


def _add_routes(app: FastAPI, server: Server) -> None:
    app.get("/", response_class=HTMLResponse)(server.page)
    app.get("/health")(server.health)
    app.get("/metrics", response_class=PlainTextResponse)(server.show_metrics)
    app.get("/v1/models")(server.models)
    app.get("/v1/models/{model:path}")(server.model)
    app.post("/v1/chat/completions")(server.chat)
    app.post("/v1/completions")(server.complete)
    app.post("/v1/responses")(server.respond)
    app.post("/tokenize")(server.tokenize)
    app.post("/apply-template")(server.apply_template)
    app.post("/v1/load_lora_adapter")(server.load_adapter)
    app.post("/v1/unload_lora_adapter")(server.unload_adapter)


def _add_error_forms(app: FastAPI) -> None:
    async def invalid(request: Request, error: Any) -> JSONResponse:
        # If several forms are allowed, the error deepest inside is that of the form that was meant.
        first = max(error.errors(), key=lambda found: len(found["loc"]))
        place = ".".join(str(part) for part in first["loc"][1:])
        return error_response(400, f"{place}: {first['msg']}" if place else str(first["msg"]), param=place or None)

    async def known(request: Request, error: Any) -> JSONResponse:
        status = status_of(error)
        headers = {"retry-after": "1"} if status in (429, 503) else None
        code = OPENAI_CODES.get(error.code, error.code)
        return error_response(status, str(error), code=code, param=error.place or None, headers=headers)

    async def plain(request: Request, error: Any) -> JSONResponse:
        return error_response(error.status_code, str(error.detail), headers=getattr(error, "headers", None))

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        return error_response(500, "a defect of the server; its log says more", code="internal_error")

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(LorakeetError, known)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, unknown)


def status_of(error: LorakeetError) -> int:
    """Return the HTTP status of an error that stops a request."""
    return 501 if isinstance(error, MissingExtraError) else STATUSES.get(error.code, 400)
