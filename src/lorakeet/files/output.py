"""Where a command is to write a new directory: it must be free and writable, before anything is loaded."""

import os
from pathlib import Path

from lorakeet.errors import ConfigError


def check_output(output: Path) -> None:
    """Refuse to write among files that are there, before anything is loaded.

    Raises: ConfigError E-CFG-48 if `output` is a file or holds something, 46 if it cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError("E-CFG-48", "is a file", place=str(output), fix="Choose another directory with -o")
    if output.is_dir() and any(output.iterdir()):
        raise ConfigError("E-CFG-48", "is not empty", place=str(output), fix="Choose another directory with -o")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("E-CFG-46", f"cannot be written: {error}", place=str(output)) from None
    if not os.access(output.parent, os.W_OK):
        raise ConfigError("E-CFG-46", "no permission to write", place=str(output.parent), fix="Choose another place")
