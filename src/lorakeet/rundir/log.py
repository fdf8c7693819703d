"""RUN/train.log: all that a run says, with times and levels, and without secrets.

data in: the records of the "lorakeet" loggers while a run lasts → out: lines in a file, from the first record on, and
the same records as ever for whoever else listens. What is printed is for the command line or the program to decide.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorakeet.errors import LorakeetError, redact

logger = logging.getLogger(__name__)

LINE = "%(asctime)s - %(levelname)s - %(name)s - %(message)s"


class LogFormatter(logging.Formatter):
    """Formats a record, traceback included, with secrets taken out."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text."""
        return redact(super().format(record))


class _PassOn(logging.Handler):
    """Passes on what others would have received without us: the logger's own handlers, and the loggers above."""

    def __init__(self, top: logging.Logger) -> None:
        super().__init__(top.getEffectiveLevel())
        self._own, self._above = top.handlers[:], top.parent if top.propagate else None

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record on."""
        for handler in self._own:
            if record.levelno >= handler.level:
                handler.handle(record)
        if self._above is not None:
            self._above.handle(record)


class _LinesOnDisk(logging.FileHandler):
    """Writes lines where it can: a disk that is full costs lines of the log, and stops nothing."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Write nothing; whoever writes what matters reports a failing disk."""

    def close(self) -> None:
        """Close the file, whether its last lines could be written or not."""
        with suppress(OSError):
            super().close()


class _File(logging.Handler):
    """Keeps records until there is a file to write them to."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[logging.LogRecord] = []
        self._file: _LinesOnDisk | None = None

    def begin(self, path: Path) -> None:
        """Write what was kept, and all that follows, to the end of the file."""
        self._file = _LinesOnDisk(path, encoding="utf-8")
        self._file.setFormatter(LogFormatter(LINE, datefmt="%Y-%m-%d %H:%M:%S"))
        for record in self._kept:
            self._file.handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep or write the record."""
        if self._file is None:
            self._kept.append(record)
        else:
            self._file.handle(record)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        super().close()


@contextmanager
def run_log() -> Iterator[Callable[[Path], None]]:
    """While entered, keep every record; once the path is known, by calling what is given, the file has all of them.

    A run that is refused before that leaves no file.
    """
    top, file = logging.getLogger("lorakeet"), _File()
    before = top.handlers, top.level, top.propagate
    top.handlers, top.propagate = [_PassOn(top), file], False
    top.setLevel(logging.DEBUG)
    try:
        yield file.begin
    except LorakeetError as error:
        logger.debug("The run ended with %s", error)
        raise
    except Exception:
        logger.debug("The run ended with a defect.", exc_info=True)
        raise
    finally:
        top.handlers, level, top.propagate = before
        top.setLevel(level)
        file.close()
