"""What rendering a conversation yields: stretches of text, each known for what it is."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["control", "context", "answer"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of rendered text."""

    text: str
    kind: Kind
    turn: int = -1
    """Index of the assistant message whose answer, or end token, this is."""
