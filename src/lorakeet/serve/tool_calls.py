"""Tool calls, read back out of what a model said.

data in: a whole answer and the names of the tools → out: what else it says, and the calls in OpenAI's form.
"""

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any


def parse_tool_calls(text: str, names: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """Take tool calls out of an answer: (what else it says, calls in OpenAI's form); without any, (text, []).

    The calls stand at the end: as JSON, one object or a list of them with name and arguments, or in <tool_call> tags.
    """
    tagged = re.findall(r"<tool_call>\s*(.*?)\s*</tool_call>", text, re.DOTALL)
    if tagged:
        calls = [call for part in tagged for call in _calls(part, names)]
        if calls:
            return text[: text.index("<tool_call>")].strip(), calls
    for start in (0, *(found.end() for found in re.finditer(r"\n", text))):
        if text[start:].lstrip()[:1] in ("[", "{"):
            calls = _calls(text[start:], names)
            if calls:
                return text[:start].strip(), calls
    return text, []


def _calls(text: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the calls if `text` is nothing else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    items = value if isinstance(value, list) else [value]
    calls = []
    for item in items:
        if not isinstance(item, dict) or item.get("name") not in names:
            return []
        arguments = item.get("arguments", item.get("parameters", {}))
        function = {"name": item["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
        calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
    return calls
