"""The form of the demo's wordings: templates by tool, and what people say around them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phrasings:
    """How the requests of one split are worded."""

    templates: dict[str | None, tuple[str, ...]]
    """By tool; None for requests that no tool serves."""
    openers: tuple[str, ...]
    """Said before a request."""
    closers: tuple[str, ...]
    """Said after a request."""
    fillers: tuple[str, ...]
    """Said before a date, a time or a number, while the speaker thinks."""


def lines(text: str) -> tuple[str, ...]:
    """Split a block of text into its lines, without the indentation."""
    return tuple(line.strip() for line in text.strip().splitlines())
