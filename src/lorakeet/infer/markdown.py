"""Markdown in a terminal, while it is being written.

data in: pieces of text → out: blocks that are complete (a paragraph, a list, a table) printed for good, and the one that is
still growing shown below them, its last lines if it is higher than the terminal. Raw HTML is text, a line break is a line
break, and escape sequences are shown instead of obeyed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live
    from rich.markdown import Markdown

REFRESH_S = 0.08


@contextmanager
def shown_markdown(console: "Console") -> Iterator[Callable[[str], None]]:
    """Return a function that takes the pieces of one answer; at the end of the block all of it is printed."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False, transient=True) as live:
        stream = _Stream(console, live)
        try:
            yield stream.write
        finally:
            stream.finish()


def markdown(text: str) -> "Markdown":
    """Parse a text as a chat means it."""
    from markdown_it import MarkdownIt
    from rich.markdown import Markdown

    parsed = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).parse(text)
    for token in parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    shown = Markdown("", code_theme="ansi_dark", hyperlinks=False)
    shown.parsed = parsed
    return shown


def last_block(text: str) -> int:
    """Return where the last top-level block begins: what stands before it will not change any more."""
    starts = [token.map[0] for token in markdown(text).parsed if token.level == 0 and token.map]
    return sum(map(len, text.splitlines(keepends=True)[: starts[-1]])) if starts else 0


class _Stream:
    """One answer."""

    def __init__(self, console: "Console", live: "Live") -> None:
        self._console, self._live = console, live
        self._growing, self._is_first, self._due = "", True, 0.0

    def write(self, piece: str) -> None:
        self._growing += piece.replace("\x1b", "␛").replace("\r", "")
        end = last_block(self._growing)
        if end:
            self._print(self._growing[:end])
            self._growing = self._growing[end:]
        if time.monotonic() >= self._due:
            self._live.update(_Tail(self._growing, is_first=self._is_first), refresh=True)
            self._due = time.monotonic() + REFRESH_S

    def finish(self) -> None:
        self._live.update("", refresh=True)
        if self._growing.strip():
            self._print(self._growing)

    def _print(self, text: str) -> None:
        if not self._is_first:
            self._console.print()
        self._console.print(markdown(text))
        self._is_first = False


class _Tail:
    """The last lines of a growing block."""

    def __init__(self, text: str, *, is_first: bool) -> None:
        self._text, self._is_first = text, is_first

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.segment import Segment

        lines: list[list[Any]] = console.render_lines(markdown(self._text), options, pad=False)
        if not self._is_first:
            lines = [[], *lines]
        for line in lines[-(console.height - 2) :]:
            yield from line
            yield Segment.line()
