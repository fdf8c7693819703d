"""What each route does: OpenAI's, vLLM's for adapters, and those that show what is computed.

data in: checked bodies → out: answers in OpenAI's form, streamed or whole. No generation and no encoding happens here; each
route puts the parts together.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from lorakeet.errors import LorakeetError, ServerError
from lorakeet.infer import engine
from lorakeet.infer.load import NamedAdapter
from lorakeet.lora.per_row import read_adapter
from lorakeet.serve import schemas
from lorakeet.serve.answers import Answers, Delta
from lorakeet.serve.forms import ChatForm, Form, TextForm, event
from lorakeet.serve.gate import error_response
from lorakeet.serve.grammar import Grammars, schema_of
from lorakeet.serve.limits import Access, Limits
from lorakeet.serve.metrics import Metrics
from lorakeet.serve.responses import ResponseForm
from lorakeet.serve.served import Served, inside, num_logprobs, sampling_of
from lorakeet.serve.worker import Worker

PAGE_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"


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
        """Return whether requests can be answered."""
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
        answers = await self._answers(body, prompt, body.max_completion_tokens or body.max_tokens, adapter)
        form = ChatForm(
            body.model,
            self.served.tokenizer.decode,
            with_logprobs=bool(body.logprobs),
            tools=[tool.function.name for tool in tools or ()],
        )
        return await self._reply(answers, form, body, request)

    async def complete(self, body: schemas.CompletionRequest, request: Request) -> Response:
        """Go on behind a text."""
        adapter = self.served.adapter(body.model)
        prompt = await run_in_threadpool(self.served.text_prompt, body.prompt)
        answers = await self._answers(body, prompt, body.max_tokens or 16, adapter)
        form = TextForm(body.model, self.served.tokenizer.decode, with_logprobs=body.logprobs is not None)
        return await self._reply(answers, form, body, request)

    async def respond(self, body: schemas.ResponsesRequest, request: Request) -> Response:
        """Answer in the form of OpenAI's responses."""
        adapter = self.served.adapter(body.model)
        given = [schemas.ChatMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
        system = body.instructions or (adapter.system if adapter else None)
        conversation = self.served.conversation(given, None, system)
        prompt = await run_in_threadpool(self.served.prompt, conversation)
        answers = await self._answers(body, prompt, body.max_output_tokens, adapter)
        return await self._reply(answers, ResponseForm(body.model, body.instructions), body, request)

    async def _answers(
        self, body: schemas.Drawing, prompt: list[int], wanted: int | None, adapter: NamedAdapter | None
    ) -> Answers:
        """Start the choices of a request. Raises: ServerError for what the limits refuse."""
        completing = body if isinstance(body, schemas.Completing) else None
        n, stops = (completing.n or 1, completing.stops) if completing else (1, [])
        self._check(n, stops)
        length = self.served.answer_length(len(prompt), wanted, self.limits.max_tokens)
        schema = schema_of(completing.response_format) if completing else None
        constraints = [None] * n if schema is None else await run_in_threadpool(self.grammars.json_constraints, schema, n)
        requests = [
            engine.Request(
                prompt=prompt,
                stop_ids=self.served.tokenizer.stop_ids,
                max_new_tokens=length,
                sampling=sampling_of(body),
                index=index,
                adapter=adapter.adapter if adapter is not None else None,
                num_logprobs=num_logprobs(body),
                constraint=constraint,
            )
            for index, constraint in enumerate(constraints)
        ]
        # Nothing is awaited between this check and the start, so no other request comes in between.
        if self.metrics.num_open + n > self.limits.max_open:
            raise ServerError("E-SRV-280", f"{self.metrics.num_open} answers are open already", fix="Ask again later")
        answers = Answers(self.worker, self.served.tokenizer, self.metrics, requests, stops, self.limits.answer_seconds)
        answers.start()
        return answers

    def _check(self, n: int, stops: list[str]) -> None:
        limits = self.limits
        if n > limits.max_n:
            raise ServerError("E-SRV-281", f"n is {n}; expected at most {limits.max_n}", place="n")
        if len(stops) > limits.max_stops or any(len(stop) > limits.max_stop_chars for stop in stops):
            text = f"at most {limits.max_stops} stop strings of at most {limits.max_stop_chars} characters are taken"
            raise ServerError("E-SRV-282", text, place="stop")

    async def _reply(self, answers: Answers, form: Form, body: schemas.Drawing, request: Request) -> Response:
        """Send the answers as they come, or all at once."""
        if body.stream:
            options = body.stream_options if isinstance(body, schemas.Completing) else None
            return _EventStream(answers, form, include_usage=options is not None and options.include_usage)
        parts: list[list[Delta]] = [[] for _ in answers.requests]
        try:
            async for delta in answers.deltas(request.is_disconnected):
                parts[delta.choice].append(delta)
        finally:
            answers.close()
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
        served.adapters[name] = NamedAdapter(adapter, str(folder))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_adapter(self, body: schemas.UnloadAdapterRequest) -> PlainTextResponse:
        """Forget an adapter; what is being answered goes on."""
        if body.lora_name not in self.served.adapters:
            raise ServerError("E-SRV-270", f"the model {body.lora_name[:80]!r} does not exist", place="lora_name")
        del self.served.adapters[body.lora_name]
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


class _EventStream(StreamingResponse):
    """Answers as server-sent events. However the response ends, even before its first event, its answers end too."""

    def __init__(self, answers: Answers, form: Form, *, include_usage: bool) -> None:
        events = _events(answers, form, include_usage=include_usage)
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. If the client takes none of them, the answers' time ends them; what is written stays unsent."""
        try:
            await asyncio.wait_for(super().__call__(scope, receive, send), self._answers.seconds + 1)
        except (asyncio.TimeoutError, TimeoutError):
            pass
        finally:
            self._answers.close()


async def _events(answers: Answers, form: Form, *, include_usage: bool) -> AsyncIterator[str]:
    try:
        for one in form.opening(len(answers.requests)):
            yield one
        async for delta in answers.deltas():
            for one in form.events(delta):
                yield one
        for one in form.closing(answers.usage, include_usage=include_usage):
            yield one
    except LorakeetError as error:
        yield event({"error": {"message": str(error), "type": "server_error", "param": None, "code": error.code}})
