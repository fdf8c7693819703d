"""What the server allows: to whom it answers, and how much it takes. Plain numbers and names, checked nowhere else."""

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Limits:
    """How much one request, and all of them, may ask for."""

    body_bytes: int = 1 << 20
    body_seconds: float = 10.0
    """Time in which the whole body of a request must arrive."""
    answer_seconds: float = 600.0
    """Time from question to end of the answer, waiting included."""
    max_tokens: int = 4096
    """Longest answer, in tokens; also where a request names no limit."""
    max_open: int = 256
    """Answers waiting or being written at once."""
    max_n: int = 8
    max_stops: int = 4
    max_stop_chars: int = 256


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    api_key: str | None = None
    """None lets everyone in who reaches the address."""
    hosts: tuple[str, ...] = LOOPBACK
    """Host names that requests may be addressed to; () for any, which is safe with a key alone."""
    origins: tuple[str, ...] = ()
    """Foreign web pages that may ask, as `https://example.org`."""
    adapter_folders: tuple[Path, ...] = ()
    """Folders from which adapters may be loaded while the server runs."""
