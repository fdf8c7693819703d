"""What can be made again at any time: directories of derived files, and hashes remembered for unchanged files.

data in: a path in the cache and a function that builds what belongs there → out: that directory, byte for byte as it was
built. Whoever calls puts everything that decides the content into the path's name, as a hash; whether what is found there
can be trusted is decided here alone. Nothing of the user's is ever kept in the cache.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorakeet.files.durable import write_file
from lorakeet.files.hashing import file_sha256

_MANIFEST = "lorakeet.json"
"""The hash of every other file of a derived directory; written last."""


def cache_dir() -> Path:
    """Return $LORAKEET_CACHE, else $XDG_CACHE_HOME/lorakeet, else ~/.cache/lorakeet; it need not exist yet."""
    own = os.environ.get("LORAKEET_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorakeet"


def state_dir() -> Path:
    """Return $XDG_STATE_HOME/lorakeet, else ~/.local/state/lorakeet, for what a user typed; it need not exist yet."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lorakeet"


def derived(directory: Path, build: Callable[[Path], None]) -> Path:
    """Return a directory of the cache; `build(draft)` fills it unless it is there and whole.

    Raises: OSError if it cannot be written, and what `build` raises.
    """
    if not is_whole(directory):
        make_derived(directory, build)
    return directory


def is_whole(directory: Path) -> bool:
    """Tell whether a derived directory is there, and byte for byte what was built; unchanged files are not read again."""
    try:
        manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
        return manifest == {"files": {file.name: remembered_sha256(file) for file in _files(directory)}}
    except (OSError, ValueError):
        return False


def make_derived(directory: Path, build: Callable[[Path], None]) -> None:
    """Build a derived directory anew, in place of a damaged one; of several processes that do, one is kept.

    Raises: OSError if it cannot be written, and what `build` raises.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
        draft = Path(scratch) / "new"
        draft.mkdir()
        build(draft)
        hashes = {file.name: file_sha256(file) for file in _files(draft)}
        (draft / _MANIFEST).write_text(json.dumps({"files": hashes}, indent=2) + "\n", encoding="utf-8")
        if directory.exists() and not is_whole(directory):
            directory.rename(Path(scratch) / "old")
        try:
            draft.rename(directory)
        except OSError:  # another process was faster
            if not is_whole(directory):
                raise


def keep_newest(parent: Path, count: int) -> None:
    """Delete all but the `count` newest entries of a directory of derived ones."""
    newest_first = sorted(parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in newest_first[count:]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def _files(directory: Path) -> list[Path]:
    return sorted(file for file in directory.iterdir() if file.name != _MANIFEST)


def remembered_sha256(file: Path) -> str:
    """Return a file's SHA-256, from memory while it stays unchanged."""
    return remembered_hash("sha256", [file], lambda: file_sha256(file))


def remembered_hash(kind: str, files: Sequence[Path], compute: Callable[[], str]) -> str:
    """Return `compute()`, the hash of `files` called `kind`, from memory while their paths, sizes and times stay."""
    state = []
    for file in files:
        real = file.resolve()
        info = real.stat()
        state.append([str(file.absolute()), str(real), info.st_size, info.st_mtime_ns, info.st_ino])
    key = hashlib.sha256(json.dumps([kind, *(row[0] for row in state)]).encode()).hexdigest()[:32]
    return _recalled(cache_dir() / "hashes" / f"{key}.json", {"state": state}, "hash", compute)


def remembered(key: str, compute: Callable[[], str]) -> str:
    """Return `compute()` from memory where it was computed under the same key before."""
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return _recalled(cache_dir() / "remembered" / f"{name}.json", {"key": key}, "value", compute)


def _recalled(memory: Path, condition: dict[str, Any], name: str, compute: Callable[[], str]) -> str:
    """Read the value called `name` from a file that also holds `condition`; else compute it and write both."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        kept = json.loads(memory.read_text(encoding="utf-8"))
        if all(kept.get(key) == value for key, value in condition.items()) and isinstance(kept.get(name), str):
            return kept[name]
    value = compute()
    # A cache that cannot be written costs time, never a result.
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_file(memory, json.dumps({**condition, name: value}).encode())
    return value
