"""The hash of a file, read piece by piece."""

import hashlib
from pathlib import Path


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    hasher = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(2**20):
            hasher.update(chunk)
    return hasher.hexdigest()
