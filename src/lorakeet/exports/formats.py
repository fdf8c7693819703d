"""The formats there are, by name; each is one file of this folder.

data in: a name → out: a Format. To add one: write the file with its FORMAT, and name it here.
"""

import difflib

from lorakeet.errors import ExportError
from lorakeet.exports import gguf_adapter, gguf_model, hf, ollama
from lorakeet.exports.artefact import Format

FORMATS: dict[str, Format] = {found.name: found for found in (hf.FORMAT, gguf_model.FORMAT, gguf_adapter.FORMAT, ollama.FORMAT)}


def find_format(name: str) -> Format:
    """Return the format called `name`. Raises: ExportError E-EXP-201 if there is none."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, 1)
        fix = f"Did you mean {near[0]}? " if near else ""
        raise ExportError(
            "E-EXP-201", f'no format is called "{name}"', place="--format", fix=f"{fix}Known: {', '.join(FORMATS)}"
        )
    return FORMATS[name]
