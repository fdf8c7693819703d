"""Quantities and commands as people write them, for everything that is shown.

data in: numbers, arguments → out: short texts: "2 min 5 s", "2.7 GB", "1 row", a command that a shell runs as it is printed.
"""

import re
import shlex
import shutil
import sys
from pathlib import Path

COMMAND = re.compile(r"(?<=: )(?:'[^']*lorakeet'|\S*lorakeet|pip|torchrun) (?=[a-z]{4}|-).*$")
"""A command at the end of a message: the only thing there that is copied, so nothing is put behind it."""


def duration(seconds: float) -> str:
    """Write a time as people say it: 8.3 s, 9 s, 4 min 10 s, 3 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(num_bytes: float) -> str:
    """Write a number of bytes with three digits: 12 kB, 350 MB, 2.71 GB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= 0.9995 * unit:
            value = num_bytes / unit
            return f"{value:,.0f} {name}" if value >= 99.95 else f"{value:.3g} {name}"
    return f"{num_bytes:.0f} bytes"


def difference(value: object) -> str:
    """Write a small number as people compare them, 2.1e-07, and a whole one as it is; what is none stays text, None empty."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        return "" if value is None else str(value)
    return f"{value:.0f}" if abs(value) < 10_000 and value == int(value) else f"{value:.1e}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number with its noun: 1 row, 2,260 rows."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def command(*words: object) -> str:
    """Write a command of Lorakeet's for the shell; with its path if the shell would not find it."""
    beside = Path(sys.executable).with_name("lorakeet")
    program = "lorakeet" if shutil.which("lorakeet") or not beside.is_file() else str(beside)
    return shlex.join([program, *map(str, words)])
