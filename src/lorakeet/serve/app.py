"""The routes: OpenAI's, vLLM's for adapters, and those that show what is computed.

data in: HTTP requests that have passed the gate → out: answers in OpenAI's form, streamed or whole. No generation and no
encoding happens here; each route puts the parts together.
"""

import asyncio
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from lorakeet.errors import LorakeetError, ServerError
from lorakeet.infer import engine
from lorakeet.infer.engine import Token
from lorakeet.lora.per_row import read_adapter
from lorakeet.serve import schemas
from lorakeet.serve.answers import Answers, Delta, parse_tool_calls, status_of
from lorakeet.serve.gate import Gate, error_response
from lorakeet.serve.grammar import ANY_OBJECT, Grammars
from lorakeet.serve.limits import Access, Limits
from lorakeet.serve.metrics import Metrics
from lorakeet.serve.served import Served, ServedAdapter, inside, num_logprobs, sampling_of
from lorakeet.serve.worker import Worker
from lorakeet.version import __version__

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorBody} for status in (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)
}
PAGE_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"


def create_app(
    served: Served, *, access: Access | None = None, limits: Limits | None = None, prefix_bytes: int = 256 << 20
) -> FastAPI:
    """Build the application; its engine's thread ends with it."""
    access, limits = access or Access(), limits or Limits()
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


def _add_routes(app: FastAPI, server: "Server") -> None:
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
        # Where several forms are allowed, the error deepest inside is that of the form that was meant.
        first = max(error.errors(), key=lambda found: len(found["loc"]))
        place = ".".join(str(part) for part in first["loc"][1:])
        return error_response(400, f"{place}: {first['msg']}" if place else str(first["msg"]), param=place or None)

    async def known(request: Request, error: Any) -> JSONResponse:
        headers = {"retry-after": "1"} if status_of(error) in (429, 503) else None
        code = "model_not_found" if error.code == "E-SRV-270" else error.code
        code = "context_length_exceeded" if error.code in ("E-SRV-272", "E-CFG-44") else code
        return error_response(status_of(error), str(error), code=code, param=error.place or None, headers=headers)

    async def plain(request: Request, error: Any) -> JSONResponse:
        return error_response(error.status_code, str(error.detail), headers=getattr(error, "headers", None))

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        return error_response(500, "a defect of the server; its log says more", code="internal_error")

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(LorakeetError, known)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, unknown)


@dataclass
class Server:
    """What the routes share, and the routes."""

    served: Served
    worker: Worker
    access: Access
    limits: Limits

    def __post_init__(self) -> None:
        running = self.worker.engine
        self.metrics = Metrics(lambda: len(running.living), lambda: running.prefixes.num_tokens)
        self.grammars = Grammars(self.served.tokenizer, self.served.model.config.vocab_size)

    # --- what is there ---------------------------------------------------------------------------------------------

    async def page(self) -> HTMLResponse:
        """Return the page for a browser."""
        text = (files("lorakeet.serve") / "page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"content-security-policy": PAGE_POLICY, "x-content-type-options": "nosniff"})

    async def health(self) -> JSONResponse:
        """Tell whether requests can be answered."""
        if not self.worker.is_alive:
            return error_response(503, "the engine has stopped; start the server again", code="E-SRV-279")
        return JSONResponse({"status": "ok"})

    async def show_metrics(self) -> PlainTextResponse:
        """Return the numbers for Prometheus."""
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self) -> dict[str, Any]:
        """List the base model and the adapters."""
        return {"object": "list", "data": self.served.cards()}

    async def model(self, model: str) -> dict[str, Any]:
        """Describe one model."""
        self.served.adapter(model)
        return next(card for card in self.served.cards() if card["id"] == model)

    # --- answers ---------------------------------------------------------------------------------------------------

    async def chat(self, body: schemas.ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        adapter = self.served.adapter(body.model)
        tools = body.tools if body.tool_choice != "none" else None
        conversation = self.served.conversation(body.messages, tools, adapter.system if adapter else None)
        prompt = await run_in_threadpool(self.served.prompt, conversation)
        wanted = body.max_completion_tokens or body.max_tokens
        answers = self._answers(body, prompt, wanted, adapter)
        form = _ChatForm(body.model, self.served.tokenizer.decode, [tool.function.name for tool in tools or ()])
        form.with_logprobs = bool(body.logprobs)
        return await self._reply(answers, form, body, request)

    async def complete(self, body: schemas.CompletionRequest, request: Request) -> Response:
        """Go on behind a text."""
        adapter = self.served.adapter(body.model)
        prompt = await run_in_threadpool(self.served.text_prompt, body.prompt)
        answers = self._answers(body, prompt, body.max_tokens or 16, adapter)
        form = _TextForm(body.model, self.served.tokenizer.decode)
        form.with_logprobs = body.logprobs is not None
        return await self._reply(answers, form, body, request)

    async def respond(self, body: schemas.ResponsesRequest, request: Request) -> Response:
        """Answer in the form of OpenAI's responses."""
        adapter = self.served.adapter(body.model)
        given = [schemas.ChatMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
        system = body.instructions or (adapter.system if adapter else None)
        conversation = self.served.conversation(given, None, system)
        prompt = await run_in_threadpool(self.served.prompt, conversation)
        answers = self._answers(body, prompt, body.max_output_tokens, adapter)
        return await self._reply(answers, _ResponseForm(body.model, body.instructions), body, request)

    def _answers(self, body: schemas.Drawing, prompt: list[int], wanted: int | None, adapter: ServedAdapter | None) -> Answers:
        """Start the choices of a request. Raises: ServerError for what the limits refuse."""
        n, stops, constraint = 1, [], None
        if isinstance(body, schemas.Completing):
            n = body.n or 1
            stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
            constraint = self._schema(body.response_format)
        self._check(n, stops)
        requests = [
            engine.Request(
                prompt=prompt,
                stop_ids=self.served.tokenizer.stop_ids,
                max_new_tokens=self.served.answer_length(len(prompt), wanted, self.limits.max_tokens),
                sampling=sampling_of(body),
                index=index,
                adapter=adapter.adapter if adapter is not None else None,
                num_logprobs=num_logprobs(body),
                constraint=None if constraint is None else self.grammars.json_constraint(constraint),
            )
            for index in range(n)
        ]
        tokenizer, seconds = self.served.tokenizer, self.limits.answer_seconds
        answers = Answers(self.worker, tokenizer, self.metrics, requests, stops, seconds)
        answers.start()
        return answers

    def _check(self, n: int, stops: list[str]) -> None:
        limits = self.limits
        if n > limits.max_n:
            raise ServerError("E-SRV-281", f"n is {n}; expected at most {limits.max_n}", place="n")
        if len(stops) > limits.max_stops or any(len(stop) > limits.max_stop_chars for stop in stops):
            text = f"at most {limits.max_stops} stop strings of at most {limits.max_stop_chars} characters are taken"
            raise ServerError("E-SRV-282", text, place="stop")
        if self.metrics.num_open + n > limits.max_open:
            raise ServerError("E-SRV-280", f"{self.metrics.num_open} answers are open already", fix="Ask again later")

    def _schema(self, form: schemas.ResponseFormat | None) -> dict[str, Any] | None:
        """Return the schema that an answer must follow, if any."""
        if form is None or form.type == "text":
            return None
        return form.json_schema.schema_ if form.json_schema is not None and form.type == "json_schema" else ANY_OBJECT

    async def _reply(self, answers: Answers, form: "_Form", body: schemas.Drawing, request: Request) -> Response:
        """Send the answers as they come, or all at once."""
        if body.stream:
            options = body.stream_options if isinstance(body, schemas.Completing) else None
            events = _events(answers, form, include_usage=options is not None and options.include_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        parts: list[list[Delta]] = [[] for _ in answers.requests]
        async for delta in answers.deltas(request.is_disconnected):
            parts[delta.choice].append(delta)
        return JSONResponse(form.whole(parts, answers.usage))

    # --- what is computed ------------------------------------------------------------------------------------------

    async def tokenize(self, body: schemas.TokenizeRequest) -> dict[str, Any]:
        """Return the ids of a text or of a conversation's prompt."""
        ids = await run_in_threadpool(self._ids, body)
        return {"count": len(ids), "max_model_len": self.served.context, "tokens": ids}

    async def apply_template(self, body: schemas.TokenizeRequest) -> dict[str, Any]:
        """Return a conversation's prompt as text and ids."""
        ids = await run_in_threadpool(self._ids, body)
        return {"prompt": self.served.tokenizer.decode(ids), "tokens": ids}

    def _ids(self, body: schemas.TokenizeRequest) -> list[int]:
        adapter = self.served.adapter(body.model) if body.model is not None else None
        if body.messages is not None and body.prompt is None:
            conversation = self.served.conversation(body.messages, body.tools, adapter.system if adapter else None)
            return self.served.prompt(conversation, add_generation_prompt=body.add_generation_prompt)
        if body.prompt is None or body.messages is not None:
            raise ServerError("E-SRV-283", "expected either prompt or messages")
        return self.served.text_prompt(body.prompt)

    # --- adapters --------------------------------------------------------------------------------------------------

    async def load_adapter(self, body: schemas.LoadAdapterRequest) -> PlainTextResponse:
        """Load an adapter, or load it again: what is being answered goes on with the old one."""
        served, name = self.served, body.lora_name
        if name == served.name:
            raise ServerError("E-SRV-284", "this is the base model's name", place="lora_name")
        folder = inside(body.lora_path, self.access.adapter_folders)
        read = partial(read_adapter, served.model, folder, base_hash=served.base_hash)
        adapter = await asyncio.wrap_future(self.worker.call(read))
        served.adapters[name] = ServedAdapter(adapter, str(folder))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_adapter(self, body: schemas.UnloadAdapterRequest) -> PlainTextResponse:
        """Forget an adapter; what is being answered goes on."""
        if body.lora_name not in self.served.adapters:
            raise ServerError("E-SRV-270", f"the model {body.lora_name[:80]!r} does not exist", place="lora_name")
        del self.served.adapters[body.lora_name]
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


async def _events(answers: Answers, form: "_Form", *, include_usage: bool) -> AsyncIterator[str]:
    """Write the answers as server-sent events."""
    deltas = answers.deltas()
    try:
        for event in form.opening(len(answers.requests)):
            yield event
        async for delta in deltas:
            for event in form.events(delta):
                yield event
        for event in form.closing(answers.usage, include_usage=include_usage):
            yield event
    except LorakeetError as error:
        detail = {"message": str(error), "type": "server_error", "param": None, "code": error.code}
        yield _event({"error": detail})
    finally:
        await deltas.aclose()  # type: ignore[attr-defined]


def _event(value: dict[str, Any], kind: str | None = None) -> str:
    head = f"event: {kind}\n" if kind else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n"


class _Form(ABC):
    """How an answer is written: whole, or as events."""

    with_logprobs = False

    def opening(self, n: int) -> list[str]:
        return []

    @abstractmethod
    def events(self, delta: Delta) -> list[str]: ...

    @abstractmethod
    def closing(self, usage: dict[str, Any], *, include_usage: bool) -> list[str]: ...

    @abstractmethod
    def whole(self, parts: list[list[Delta]], usage: dict[str, Any]) -> dict[str, Any]: ...


class _CompletionForm(_Form):
    """What chat and plain completions share."""

    prefix, name, chunk_name = "", "", ""

    def __init__(self, model: str, decode: Any) -> None:
        self.model, self.decode = model, decode
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())

    def head(self, name: str) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    def chunk(self, choice: int, finish_reason: str | None, logprobs: Any, **content: Any) -> str:
        one = {"index": choice, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        return _event({**self.head(self.chunk_name), "choices": [one]})

    def closing(self, usage: dict[str, Any], *, include_usage: bool) -> list[str]:
        last = [_event({**self.head(self.chunk_name), "choices": [], "usage": usage})] if include_usage else []
        return [*last, "data: [DONE]\n\n"]

    def whole(self, parts: list[list[Delta]], usage: dict[str, Any]) -> dict[str, Any]:
        choices = [self.choice(at, deltas) for at, deltas in enumerate(parts)]
        return {**self.head(self.name), "choices": choices, "usage": usage}

    @abstractmethod
    def choice(self, at: int, deltas: list[Delta]) -> dict[str, Any]: ...


class _ChatForm(_CompletionForm):
    """OpenAI's chat completions. With tools an answer is written when it is complete: only then it is known what it is."""

    prefix, name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, decode: Any, tools: list[str]) -> None:
        super().__init__(model, decode)
        self.tools = tools
        self.held: dict[int, list[Delta]] = {}

    def opening(self, n: int) -> list[str]:
        return [self.chunk(at, None, None, delta={"role": "assistant", "content": ""}) for at in range(n)]

    def events(self, delta: Delta) -> list[str]:
        if self.tools:
            held = self.held.setdefault(delta.choice, [])
            held.append(delta)
            if delta.finish_reason is None:
                return []
            message, finish = self.message(held)
            calls = [{"index": at, **call} for at, call in enumerate(message.get("tool_calls", ()))]
            content = {"content": message["content"], **({"tool_calls": calls} if calls else {})}
            logprobs = self.logprobs([token for part in held for token in part.tokens])
            return [self.chunk(delta.choice, None, logprobs, delta=content), self.chunk(delta.choice, finish, None, delta={})]
        logprobs = self.logprobs(delta.tokens)
        events = [self.chunk(delta.choice, None, logprobs, delta={"content": delta.text})] if delta.text or delta.tokens else []
        if delta.finish_reason is not None:
            events.append(self.chunk(delta.choice, delta.finish_reason, None, delta={}))
        return events

    def choice(self, at: int, deltas: list[Delta]) -> dict[str, Any]:
        message, finish = self.message(deltas)
        logprobs = self.logprobs([token for delta in deltas for token in delta.tokens])
        return {"index": at, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def message(self, deltas: list[Delta]) -> tuple[dict[str, Any], str | None]:
        """Return the whole message of a choice, and why it ended."""
        text, finish = "".join(delta.text for delta in deltas), deltas[-1].finish_reason if deltas else "stop"
        text, calls = parse_tool_calls(text, self.tools) if self.tools else (text, [])
        if calls:
            return {"role": "assistant", "content": text or None, "tool_calls": calls}, "tool_calls"
        return {"role": "assistant", "content": text}, finish

    def logprobs(self, tokens: Any) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        return {"content": [{**self.entry(token.id, token.logprob), "top_logprobs": self.top(token)} for token in tokens]}

    def top(self, token: Token) -> list[dict[str, Any]]:
        return [self.entry(id, logprob) for id, logprob in token.likeliest]

    def entry(self, id: int, logprob: float | None) -> dict[str, Any]:
        text = self.decode([id])
        return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}


class _TextForm(_CompletionForm):
    """OpenAI's plain completions."""

    prefix, name, chunk_name = "cmpl", "text_completion", "text_completion"

    def events(self, delta: Delta) -> list[str]:
        return [self.chunk(delta.choice, delta.finish_reason, self.logprobs(delta.tokens), text=delta.text)]

    def choice(self, at: int, deltas: list[Delta]) -> dict[str, Any]:
        logprobs = self.logprobs([token for delta in deltas for token in delta.tokens])
        text, finish = "".join(delta.text for delta in deltas), deltas[-1].finish_reason if deltas else "stop"
        return {"index": at, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def logprobs(self, tokens: Any) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        texts = [self.decode([token.id]) for token in tokens]
        offsets = [sum(map(len, texts[:at])) for at in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [{self.decode([id]): _finite(value) for id, value in token.likeliest} for token in tokens],
            "text_offset": offsets,
        }


class _ResponseForm(_Form):
    """OpenAI's responses: one message of text."""

    def __init__(self, model: str, instructions: str | None) -> None:
        self.model, self.instructions, self.text = model, instructions, ""
        self.id, self.item_id, self.created = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}", time.time()
        self.sequence, self.is_cut = 0, False

    def response(self, status: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        counts = None
        if usage is not None:
            counts = {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            }
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": self.model,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self.is_cut else None,
            "instructions": self.instructions,
            "metadata": {},
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "temperature": None,
            "top_p": None,
            "usage": counts,
            "output": [self.item(status)] if usage is not None else [],
        }

    def item(self, status: str) -> dict[str, Any]:
        content = [{"type": "output_text", "text": self.text, "annotations": []}]
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def numbered(self, kind: str, **values: Any) -> str:
        event = _event({"type": kind, "sequence_number": self.sequence, **values}, kind)
        self.sequence += 1
        return event

    def opening(self, n: int) -> list[str]:
        part = {"type": "output_text", "text": "", "annotations": []}
        where = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        item = {**self.item("in_progress"), "content": []}
        return [
            self.numbered("response.created", response=self.response("in_progress", None)),
            self.numbered("response.output_item.added", output_index=0, item=item),
            self.numbered("response.content_part.added", **where, part=part),
        ]

    def events(self, delta: Delta) -> list[str]:
        self.text += delta.text
        self.is_cut = self.is_cut or delta.finish_reason == "length"
        where = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        fields = {**where, "delta": delta.text, "logprobs": []}
        return [self.numbered("response.output_text.delta", **fields)] if delta.text else []

    def closing(self, usage: dict[str, Any], *, include_usage: bool) -> list[str]:
        status = "incomplete" if self.is_cut else "completed"
        where = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        return [
            self.numbered("response.output_text.done", **where, text=self.text, logprobs=[]),
            self.numbered("response.output_item.done", output_index=0, item=self.item(status)),
            self.numbered(f"response.{status}", response=self.response(status, usage)),
        ]

    def whole(self, parts: list[list[Delta]], usage: dict[str, Any]) -> dict[str, Any]:
        for delta in parts[0]:
            self.events(delta)
        return self.response("incomplete" if self.is_cut else "completed", usage)


def _finite(logprob: float | None) -> float | None:
    """Return a logprob that JSON can hold; OpenAI writes -9999 for what cannot happen."""
    return logprob if logprob is None or logprob > -9999.0 else -9999.0
