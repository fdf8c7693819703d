"""Where derived files live that can be made again at any time, and hashes remembered for unchanged files.

environment, paths → out: one directory path; hexadecimal hashes. Nothing of the user's is ever kept here.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lorakeet.files.durable import write_file


def cache_dir() -> Path:
    """Give $LORAKEET_CACHE, else $XDG_CACHE_HOME/lorakeet, else ~/.cache/lorakeet; it need not exist yet."""
    own = os.environ.get("LORAKEET_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorakeet"


def remembered_hash(kind: str, files: Sequence[Path], compute: Callable[[], str]) -> str:
    """Give `compute()`, the hash of `files` called `kind`, from memory while their paths, sizes and times stay."""
    state = []
    for file in files:
        real = file.resolve()
        info = real.stat()
        state.append([str(file.absolute()), str(real), info.st_size, info.st_mtime_ns, info.st_ino])
    key = hashlib.sha256(json.dumps([kind, *(row[0] for row in state)]).encode()).hexdigest()[:32]
    memory = cache_dir() / "hashes" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        kept = json.loads(memory.read_text(encoding="utf-8"))
        if kept.get("state") == state and isinstance(kept.get("hash"), str):
            return kept["hash"]
    value = compute()
    # A cache that cannot be written costs time, never a result.
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_file(memory, json.dumps({"state": state, "hash": value}).encode())
    return value


def remembered(key: str, compute: Callable[[], str]) -> str:
    """Give `compute()` from memory where it was computed under the same key before."""
    memory = cache_dir() / "remembered" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        kept = json.loads(memory.read_text(encoding="utf-8"))
        if kept.get("key") == key and isinstance(kept.get("value"), str):
            return kept["value"]
    value = compute()
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_file(memory, json.dumps({"key": key, "value": value}).encode())
    return value
