"""Writing so that a crash, a full disk or a loss of power leaves the old or the new, never a part of either.

paths, bytes → out: files and directories that are whole, under their own names, and on disk when the call returns.
Everything that must survive is written through here: configurations, checkpoints, adapters, merged models. What is
not finished has a name of the form `.NAME.part`, so that nobody takes it for the thing itself. Knows no formats.
"""

import errno
import fcntl
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from lorakeet.errors import ConfigError

SPACE_MARGIN = 1.2
"""Free space demanded, as a multiple of what will be written."""


class NewFile:
    """A file that did not exist before, and is on disk once it is closed."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._end = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write at the end of the file."""
        self.write_at(data, self._end)

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write at `offset`, in as many pieces as the system takes."""
        left = memoryview(data)
        while left:
            count = os.pwrite(self._descriptor, left, offset)
            left, offset = left[count:], offset + count
        self._end = max(self._end, offset)

    def close(self) -> None:
        """Force the file to disk and close it."""
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:  # nobody will want this file
            os.close(self._descriptor)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Return the name of a draft to write with `NewFile`; at the end of the block it becomes `path`, in one step.

    A file that is at `path` stays until then, and if the block fails.
    """
    # Not through tempfile, whose files other users cannot read.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield draft
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a file, in place of an older one if there is one."""
    with new_file(path) as draft, NewFile(draft) as file:
        file.write(data)


@contextmanager
def new_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Return an empty draft to write files into; at the end of the block it becomes `target`, in one step.

    The files in it must come from `NewFile` or `write_file`. With `replace`, what is at `target` makes way at the last
    moment; where the block fails, it stays and the draft goes.

    Raises: ConfigError E-CFG-50 if another process is writing the same directory.
    """
    draft = target.with_name(f".{target.name}.part")
    if draft.exists():  # of a writer that was killed, or of one that lives
        with _held(draft):
            shutil.rmtree(draft)
    draft.mkdir()
    with _held(draft):
        try:
            yield draft
            sync_directory(draft)
            _put_in_place(draft, target, replace)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


def _put_in_place(draft: Path, target: Path, replace: bool) -> None:
    """Rename a draft, and delete what was at its target before; without `replace` only an empty directory may be."""
    old = _moved_aside(target) if replace and target.exists() else None
    try:
        os.rename(draft, target)
    except BaseException:
        if old is not None:
            os.rename(old, target)
        raise
    sync_directory(target.parent)
    if old is not None:
        shutil.rmtree(old)


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing, and force their names to disk."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    with suppress(PermissionError):  # one may write into a directory that one may not read, and so not open
        sync_directory(path.parent)


def remove_directory(path: Path) -> None:
    """Delete a directory so that no part of it is ever seen under its name."""
    doomed = _moved_aside(path)
    sync_directory(path.parent)
    shutil.rmtree(doomed)


def _moved_aside(path: Path) -> Path:
    """Rename a directory to what is not taken for it, and return that."""
    aside = path.with_name(f".{path.name}.old.part")
    if aside.exists():
        shutil.rmtree(aside)
    os.rename(path, aside)
    return aside


def is_leftover(path: Path) -> bool:
    """Tell whether a name is that of something unfinished."""
    return path.name.startswith(".") and path.name.endswith(".part")


def remove_leftovers(directory: Path) -> None:
    """Delete what killed writers left in `directory`; only for who knows that nobody writes there now."""
    for path in filter(is_leftover, directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def sync_directory(path: Path) -> None:
    """Force the names in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(directory: Path, num_bytes: int) -> None:
    """Raise ConfigError E-CFG-47 unless `num_bytes` and a margin fit on the disk that holds `directory`."""
    needed = math.ceil(SPACE_MARGIN * num_bytes)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ConfigError(
            "E-CFG-47",
            f"need {needed:,} bytes, have {free:,}",
            place=str(directory),
            fix="Make room, or choose another output directory",
        )


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn what the system says against writing into a ConfigError: E-CFG-47 for a full disk, else E-CFG-46."""
    try:
        yield
    except OSError as error:
        said = f"{error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigError(
                "E-CFG-47",
                f"cannot be written: {said}{_have(place)}",
                place=str(place),
                fix="Make room, or choose another output directory",
            ) from None
        raise ConfigError(
            "E-CFG-46", f"cannot be written: {said}", place=str(place), fix="Check the disk and its permissions"
        ) from None


def _have(place: Path) -> str:
    """Return how much room there is, if that can be found out."""
    with suppress(OSError):
        existing = next(path for path in (place, *place.parents) if path.exists())
        return f", have {shutil.disk_usage(existing).free:,} bytes"
    return ""


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Hold a lock on a directory that the system drops when the process ends, however it ends."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                "E-CFG-50",
                "is being written by another process",
                place=str(directory),
                fix="Wait for it, or choose another place",
            ) from None
        except OSError:  # network file systems may know no lock on directories; the caller's own lock must do
            pass
        yield
    finally:
        os.close(descriptor)
