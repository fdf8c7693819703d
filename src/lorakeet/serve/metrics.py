"""Numbers for Prometheus: requests, queue, tokens, time to the first token, memory."""

from collections.abc import Callable
from typing import Any

from lorakeet.errors import MissingExtraError


class Metrics:
    """The server's counters, in a registry of their own."""

    def __init__(self, num_living: Callable[[], int], num_prefix_tokens: Callable[[], int]) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
        except ImportError:
            raise MissingExtraError.of("prometheus-client", "serve", "the server") from None
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory among other things
        own: Any = {"registry": self.registry}
        self._requests = Counter("lorakeet_requests", "Requests by path and status", ["path", "status"], **own)
        self._prompt_tokens = Counter("lorakeet_prompt_tokens", "Tokens of prompts", **own)
        self._generated_tokens = Counter("lorakeet_generated_tokens", "Tokens of answers", **own)
        self._open = Gauge("lorakeet_open_answers", "Answers waiting or being written", **own)
        self._first = Histogram("lorakeet_first_token_seconds", "From request to first token", **own)
        Gauge("lorakeet_running_answers", "Answers being written", **own).set_function(num_living)
        Gauge("lorakeet_kept_prefix_tokens", "Tokens whose keys and values are kept", **own).set_function(num_prefix_tokens)
        self.num_open = 0

    def answered(self, path: str, status: int) -> None:
        """Count a request by the route it took and its status."""
        self._requests.labels(path, str(status)).inc()

    def opened(self) -> None:
        """Count an answer in."""
        self.num_open += 1
        self._open.set(self.num_open)

    def closed(self) -> None:
        """Count an answer out."""
        self.num_open -= 1
        self._open.set(self.num_open)

    def tokens(self, num_prompt: int, num_generated: int) -> None:
        """Count the tokens of a request that has ended."""
        self._prompt_tokens.inc(num_prompt)
        self._generated_tokens.inc(num_generated)

    def first_token(self, seconds: float) -> None:
        """Note how long a request waited for its first token."""
        self._first.observe(seconds)

    def text(self) -> bytes:
        """Write everything in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
