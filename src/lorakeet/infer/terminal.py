"""Reading lines at a terminal: history, completion of commands, several lines at once.

data in: keys → out: a question. Enter sends; Alt-Enter, or a backslash at the end, goes on with another line. Ctrl-C
empties the line, Ctrl-D at an empty one leaves. What was asked is remembered until the end of the chat, not on disk.
"""

from collections.abc import Callable
from typing import Any

from lorakeet.infer.chat_commands import HELP


def terminal_reader(session_class: Any, **options: Any) -> Callable[[], str | None]:
    """Return a function that reads the next question; `options` are those of a PromptSession."""
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    commands = WordCompleter([line.split()[0] for line in HELP.splitlines()], sentence=True)
    session = session_class("> ", completer=commands, key_bindings=keys, **options)

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
