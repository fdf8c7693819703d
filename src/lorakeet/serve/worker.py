"""The thread in which the engine runs, and how others reach it.

data in: requests from any thread → out: their tokens, passed to callbacks in the engine's thread. Everything that touches
the model happens in this one thread, between two passes: new requests, cancelled ones, adapters that are read.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

import torch

from lorakeet.errors import ServerError
from lorakeet.infer.engine import Engine, Request, Stream
from lorakeet.infer.mode import evaluating
from lorakeet.models.decoder import CausalLM

T = TypeVar("T")
_FIX = "Start the server again; its log says why"


class Worker:
    """An engine with a thread of its own, from construction to `close`."""

    def __init__(self, model: CausalLM, *, prefix_bytes: int) -> None:
        self.engine = Engine(model, prefix_bytes=prefix_bytes)
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_closing = self._is_over = False
        self._end = threading.Lock()
        """Held while the end is declared, so that nothing is put into the queue of a thread that no longer looks."""
        self._thread = threading.Thread(target=self._run, name="lorakeet-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests can be answered."""
        return not self._is_over

    def start(self, request: Request) -> Stream:
        """Put a request into the queue. Raises: ConfigError if it cannot be answered, E-SRV-279 without an engine."""
        stream = self.engine.prepare(request)
        self._put(lambda: self._enqueue(stream))
        return stream

    def cancel(self, stream: Stream) -> None:
        """Stop a request, whether it waits, lives or has ended."""
        if not stream.is_ended:
            with suppress(ServerError):
                self._put(lambda: self.engine.cancel(stream))

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run `function` between two passes. Raises: E-SRV-279 without an engine."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                if self._is_over:
                    raise _stopped()
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._put(run)
        return future

    def close(self) -> None:
        """End the thread; what still lives is failed."""
        with suppress(ServerError):
            self._put(self._close)
        self._thread.join()

    def _close(self) -> None:
        self._is_closing = True

    def _put(self, call: Callable[[], None]) -> None:
        with self._end:
            if self._is_over:
                raise _stopped()
            self._calls.put(call)

    def _enqueue(self, stream: Stream) -> None:
        if not stream.is_ended:
            self.engine.enqueue(stream)

    def _run(self) -> None:
        try:
            # Answers do not pay for compilations, which would keep all of them waiting.
            with evaluating(self.engine.model), torch.compiler.set_stance("force_eager"):
                while not self._is_closing:
                    self._obey()
                    self.engine.advance()
        finally:
            with self._end:
                self._is_over = True
            self._fail_all()

    def _obey(self) -> None:
        """Run what others have asked for; wait for it if there is nothing else to do."""
        is_idle = not (self.engine.waiting or self.engine.living)
        if is_idle:
            self._calls.get()()
        while not self._calls.empty():
            self._calls.get_nowait()()

    def _fail_all(self) -> None:
        """Fail every request, those that were still on their way among them."""
        while not self._calls.empty():
            with suppress(Exception):  # the engine may be broken
                self._calls.get_nowait()()
        for stream in (*self.engine.waiting, *self.engine.living):
            stream.error = _stopped() if self._is_closing else _broken()
            if stream.request.on_end is not None:
                stream.request.on_end(stream)


def _stopped() -> ServerError:
    return ServerError("E-SRV-279", "the engine has stopped", fix=_FIX)


def _broken() -> ServerError:
    return ServerError("E-SRV-288", "the engine broke before this answer was whole", fix=_FIX)
