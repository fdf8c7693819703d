"""JSON answers that cannot be anything else: a grammar decides which tokens may come next.

data in: a response_format → out: an engine's constraint. The grammar is llguidance's; nothing is parsed here.
"""

import json
from typing import Any

import torch

from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import MissingExtraError, ServerError
from lorakeet.serve.schemas import ResponseFormat

ANY_OBJECT: dict[str, Any] = {"type": "object"}


def schema_of(form: ResponseFormat | None) -> dict[str, Any] | None:
    """Return the schema that an answer must follow, if any."""
    if form is None or form.type == "text":
        return None
    return form.json_schema.schema_ if form.json_schema is not None and form.type == "json_schema" else ANY_OBJECT


class Grammars:
    """Builds constraints for one tokenizer, which is prepared once."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self._prepared: Any = None

    def json_constraints(self, schema: dict[str, Any], count: int) -> list["JsonConstraint"]:
        """Build the constraints of `count` answers. Raises: ServerError E-SRV-276 for a schema that is no grammar."""
        try:
            import llguidance
        except ImportError:
            raise MissingExtraError.of("llguidance", "serve", "response_format") from None
        if self._prepared is None:
            ends = sorted(self.tokenizer.stop_ids)
            self._prepared = llguidance.LLTokenizer(
                json.dumps(self.tokenizer.spec), n_vocab=self.vocab_size, eos_token=ends[0] if len(ends) == 1 else ends
            )
        grammar = json.dumps({"grammars": [{"json_schema": schema}]})
        matcher = llguidance.LLMatcher(self._prepared, grammar)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())[:200]
            raise ServerError("E-SRV-276", f"the schema cannot be followed: {reason}", place="response_format")
        return [JsonConstraint(matcher.deep_copy(), self.vocab_size) for _ in range(count)]


class JsonConstraint:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allow(self, logits_V: torch.Tensor) -> torch.Tensor:
        """Return the logits with minus infinity where a token would break the JSON."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        mask_V = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[: self._vocab_size].bool()
        return logits_V.masked_fill(~mask_V.to(logits_V.device), float("-inf"))

    def accept(self, token: int) -> None:
        """Go on by one token."""
        self._matcher.consume_token(token)
