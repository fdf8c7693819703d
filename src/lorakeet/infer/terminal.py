"""Reading lines at a terminal: history, completion of commands, several lines at once.

data in: keys → out: a question. Enter sends; Alt-Enter, or a backslash at the end, goes on with another line. Ctrl-C
empties the line, Ctrl-D at an empty one leaves. What was typed is remembered in a file that only its owner can read.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lorakeet.infer.chat_commands import COMMANDS, SETTINGS


def terminal_reader(
    session_class: Any, *, adapters: Iterable[str] = (), history: Path | None = None, **options: Any
) -> Callable[[], str | None]:
    """Return a function that reads the next question.

    Args:
        session_class: prompt_toolkit's PromptSession; `options` are its own.
        adapters: names that /adapter completes.
        history: the file of what was typed before; None to remember it for this chat only.
    """
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    session = session_class(completer=command_completer(adapters), key_bindings=keys, history=_history(history), **options)

    def read() -> str | None:
        lines: list[str] = []
        while True:
            try:
                line = session.prompt("> " if not lines else "… ")
            except KeyboardInterrupt:
                lines = []
                continue
            except EOFError:
                return None
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    return read


def command_completer(adapters: Iterable[str] = ()) -> Any:
    """Build what completes a command, and then what stands behind it."""
    from prompt_toolkit.completion import Completer, PathCompleter, WordCompleter
    from prompt_toolkit.document import Document

    def words(known: Iterable[str]) -> Any:
        return WordCompleter(list(known), sentence=True)

    behind = {"/adapter": words(["on", "off", *adapters]), "/set": words(SETTINGS)}
    behind |= dict.fromkeys(("/save", "/load"), PathCompleter(expanduser=True))
    commands = words(COMMANDS)

    class CommandCompleter(Completer):
        """Completes lines that begin with a slash."""

        def get_completions(self, document: Any, complete_event: Any) -> Iterable[Any]:
            command, space, rest = document.text_before_cursor.partition(" ")
            completer = behind.get(command) if space else commands
            return completer.get_completions(Document(rest if space else command), complete_event) if completer else ()

    return CommandCompleter()


def _history(file: Path | None) -> Any:
    """Build the history of a session."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if file is None:
        return InMemoryHistory()
    kept = file

    class PrivateHistory(FileHistory):
        """A history that others cannot read, on disk as soon as a line is sent."""

        def store_string(self, string: str) -> None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "wb") as stored:
                stored.write(b"\n# lorakeet\n" + b"".join(b"+%s\n" % line.encode() for line in string.split("\n")))
                stored.flush()
                os.fsync(descriptor)

    return PrivateHistory(str(kept))
