"""The formats there are, by name; each is one file of this folder.

data in: a name → out: a Format. To add one: write the file with its FORMAT, and name it here.
"""

import difflib

from lorakeet.errors import ExportError
from lorakeet.exports import gguf_adapter, gguf_model, hf, ollama, peft, peft_split, vllm
from lorakeet.exports.artefact import Format

_ALL = (hf, gguf_model, gguf_adapter, ollama, peft, peft_split, vllm)
FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in _ALL}


def find_format(name: str) -> Format:
    """Return the format called `name`. Raises: ExportError E-EXP-201 if there is none."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, 1)
        fix = f"Did you mean {near[0]}? " if near else ""
        raise ExportError(
            "E-EXP-201", f'no format is called "{name}"', place="--format", fix=f"{fix}Known: {', '.join(FORMATS)}"
        )
    return FORMATS[name]
