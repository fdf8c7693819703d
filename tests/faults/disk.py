"""A seam between a run and the system's calls that change files: they are counted, failed, died in, or recorded.

Everything of a run that must survive is written by lorakeet.files.durable with the functions of `os` named here; what
was written past them would be empty after every recorded loss of power. Only calls about one directory tree count: what
lies elsewhere (caches, the model) is not what a run could lose.
"""

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLS = ("open", "pwrite", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink")


@dataclass
class Seam:
    """Stands between a process and the disk, once it is installed there."""

    tree: Path
    before: Callable[[str, int], None]
    """Called with the name and the number of every call, counted from 1, before it is made."""
    after: Callable[[str, tuple, Any], None] = lambda name, given, result: None
    count: int = 0

    def install(self) -> None:
        """Put the seam in place for good; for processes that end soon."""
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **options: Any) -> Any:
            path = _path(given[0], options)
            is_ours = path == str(self.tree) or path.startswith(f"{self.tree}/")
            if not is_ours or (name == "open" and not _may_create(given)):
                result = call(*given, **options)
            else:
                self.count += 1
                self.before(name, self.count)
                result = call(*given, **options)
                target = os.fspath(given[1]) if name in ("rename", "replace") else None
                self.after(name, (path, target, *(given[1:] if name == "pwrite" else ())), result)
            return result

        return wrapped


def _path(given: Any, options: dict[str, Any]) -> str:
    """Find the path of a call; shutil.rmtree names its files relative to an open directory."""
    if isinstance(given, int):
        return os.readlink(f"/proc/self/fd/{given}")
    parent = options.get("dir_fd")
    return os.path.abspath(given) if parent is None else os.path.join(_path(parent, {}), os.fspath(given))


def _may_create(given: tuple) -> bool:
    return bool(given[1] & os.O_CREAT)


@dataclass(frozen=True)
class DieAt:
    """Kill the process in place of its nth call."""

    tree: Path
    nth: int

    def __call__(self) -> None:
        def before(name: str, count: int) -> None:
            if count == self.nth:
                os.kill(os.getpid(), 9)

        Seam(self.tree, before).install()


@dataclass(frozen=True)
class FailAt:
    """Let the nth call fail, and say in a file whether it came to that."""

    tree: Path
    nth: int
    error: int
    told: Path
    and_after: bool = False
    """Let every later call but those that delete fail too, as on a disk that stays full."""

    def __call__(self) -> None:
        deleting = ("unlink", "rmdir")

        def before(name: str, count: int) -> None:
            if count == self.nth or (self.and_after and count > self.nth and name not in deleting):
                self.told.write_text(name)
                raise OSError(self.error, os.strerror(self.error))

        Seam(self.tree, before).install()


@dataclass(frozen=True)
class Record:
    """Keep every call, with the bytes written, in a file."""

    tree: Path
    into: Path

    def __call__(self) -> None:
        stream = open(self.into, "wb", buffering=0)  # noqa: SIM115

        def after(name: str, given: tuple, result: Any) -> None:
            path, target, *written = given
            if name == "pwrite":
                data, offset = written
                written = [bytes(data[:result]), offset]
            elif name == "fsync" and os.path.isfile(path):
                # What was written past the seam (lines of metrics) counts as written just before it is forced to disk.
                written = [Path(path).read_bytes()]
            stream.write(pickle.dumps((name, path, target, *written)))

        Seam(self.tree, lambda name, count: None, after).install()


def recorded(file: Path) -> list[tuple]:
    """Read what `Record` kept."""
    calls = []
    with open(file, "rb") as stream:
        while True:
            try:
                calls.append(pickle.load(stream))
            except EOFError:
                return calls
