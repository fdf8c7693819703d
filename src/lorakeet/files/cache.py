"""Where derived files live that can be made again at any time, and hashes remembered for unchanged files.

environment, paths → out: one directory path; hexadecimal hashes. Nothing of the user's is ever kept here.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorakeet.files.durable import write_file


def cache_dir() -> Path:
    """Return $LORAKEET_CACHE, else $XDG_CACHE_HOME/lorakeet, else ~/.cache/lorakeet; it need not exist yet."""
    own = os.environ.get("LORAKEET_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorakeet"


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
