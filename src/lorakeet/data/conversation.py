"""The one internal form of a training row: who said what, and what is to be learned from it."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: Role
    content: str
    train: bool | None = None
    """True or False where the row says so itself; None leaves it to the run's `learn` option."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """The assistant's calls as parsed JSON, in the order given."""
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row of training data, or the prompt of one generation."""

    messages: tuple[Message, ...]
    place: str = ""
    """Where it came from, for error messages: `train.jsonl:17`."""
    tools: tuple[dict[str, Any], ...] = field(default=())
    """Tool definitions that the row carries, as parsed JSON."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation as the model sees it: token ids and the spans that are learned.

    `spans` are half-open (start, end) index pairs into `input_ids`, in order, not touching each other's tokens:
    the token at every index inside a span is a training target, predicted from the tokens before it.
    """

    input_ids: list[int]
    spans: tuple[tuple[int, int], ...]
    place: str = ""

    @property
    def num_supervised_tokens(self) -> int:
        """Number of tokens that are training targets."""
        return sum(end - start for start, end in self.spans)
