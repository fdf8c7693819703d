"""The chat templates of the families that are known, each a row of LAYOUTS, and the template texts they stand for.

data in: a template's text, as a tokenizer brings it → out: the name of the layout that renders the same.
"""

import hashlib
import re
from dataclasses import replace

from lorakeet.data.templates.layout import Layout

_SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_PHI3 = Layout("phi3-mini", open="", sep="", after_header="\n", end="<|end|>", after_end="\n", eos="<|endoftext|>")
_PHI3_OLD = replace(_PHI3, name="phi3-mini-2024-04", bos="<s>", eos="", roles=("user", "assistant"), header_after_user=True)
_CHATML = Layout(
    "chatml",
    open="<|im_start|>",
    sep="",
    after_header="\n",
    end="<|im_end|>",
    after_end="\n",
    roles=("system", "user", "assistant", "tool"),
)
_PHI4 = Layout("phi4", open="<|im_start|>", sep="<|im_sep|>", after_header="", end="<|im_end|>", after_end="")

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        _PHI3,
        _PHI3_OLD,
        replace(_PHI3, name="phi3.5", skips_empty_system=True),
        replace(_PHI3_OLD, name="phi3-medium"),
        replace(_PHI3_OLD, name="phi3-medium-no-bos", bos=""),
        Layout(
            "phi4-mini",
            open="",
            sep="",
            after_header="",
            end="<|end|>",
            after_end="",
            eos="<|endoftext|>",
            roles=("system", "user", "assistant", "tool"),
            tool_call=("<|tool_call|>", "<|/tool_call|>"),
            tools=("<|tool|>", "<|/tool|>"),
        ),
        _PHI4,
        replace(_PHI4, name="phi4-2024-12", header_after_user=True),
        _CHATML,
        replace(_CHATML, name="smollm2", default_system=_SMOLLM2_SYSTEM),
    )
}

# Template texts known to be one of the layouts, by the first 16 digits of the hash of their normalised text.
# tests/data/templates holds the texts, and the tests compare every layout with Jinja's own rendering of them.
KNOWN_TEXTS: dict[str, str] = {
    "6ad7332629320d55": "phi3-mini",
    "f04b8cfaf9530ff1": "phi3-mini-2024-04",
    "8f57e2188119ea1e": "phi3.5",
    "7d0211eb1ecc35e7": "phi3-medium-no-bos",
    "dc77338c836a36f5": "phi4-mini",
    "a006328b5ffb8ef5": "phi4",
    "14e93d3241da69ea": "phi4-2024-12",
    "e0af03005c68e8ae": "chatml",
    "2b826aefcc3880ae": "smollm2",
}


def normalized_hash(text: str) -> str:
    """Hash a template's text, blind to how its line breaks and concatenations are spelled."""
    text = text.replace("\\n", "\n").replace('"', "'").replace("' + '", "").replace("'+'", "")
    # Whitespace outside of quotes means nothing inside Jinja's braces; the texts known here have none outside them.
    parts = text.split("'")
    parts[::2] = [re.sub(r"\s+", "", part) for part in parts[::2]]
    return hashlib.sha256("'".join(parts).encode()).hexdigest()[:16]
