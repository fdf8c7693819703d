"""A request to stop, by Ctrl-C or SIGTERM, that is acted on where nothing is lost.

data in: signals → out: KeyboardInterrupt, at once where the work at hand can be dropped (loading, encoding, a forward
pass, an evaluation), else at the next `check`. A second signal raises at once wherever it comes.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from lorakeet import dist


class StopRequest:
    """While entered, listens to SIGINT and SIGTERM."""

    def __init__(self) -> None:
        self.requested = False
        """A signal has come."""
        self.at_once = False
        """A second one has come: nothing more is to be saved."""
        self._droppable = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Python lets only the main thread set handlers; a signal that the parent had ignored (nohup) stays ignored.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt where a signal has come, to this process or to another one; all must ask."""
        if dist.any_process(self.requested):
            self.requested = True
            raise KeyboardInterrupt

    @contextmanager
    def droppable(self, *, together: bool = False) -> Iterator[None]:
        """Let a signal raise KeyboardInterrupt at once in this block, whose work is lost then.

        Work that processes do `together` is dropped only if there is one process: none may leave the others alone.
        """
        if together and dist.is_shared():
            yield
            return
        before, self._droppable = self._droppable, True
        try:
            self.check()
            yield
        finally:
            self._droppable = before

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.at_once = self.requested
        self.requested = True
        if self.at_once or self._droppable:
            raise KeyboardInterrupt
