"""The model card, README.md: what whoever finds an adapter or a model needs to know and to run it.

data in: a Card → out: Markdown under the metadata keys that PEFT and the hub read. Names of files on the writer's
machine stay out of it, and so does whatever is not known. Writes no file.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_UNKNOWN_ID = "PATH-OR-OWNER/NAME"


@dataclass(frozen=True)
class Card:
    """What a model card says."""

    base: str
    """The base model: its hub id, or in words what it is."""
    name: str = ""
    """What the model is called; its hub id if it has one."""
    about: str = ""
    """What it is, in a sentence or two."""
    license: str | None = None
    """The hub's name of a licence, as "mit"; None if unknown."""
    datasets: tuple[str, ...] = ()
    """Hub ids of data sets."""
    data: tuple[str, ...] = ()
    """What was trained on, as the user named it."""
    figures: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    proofs: tuple[str, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by what it is of."""
    system: str | None = None
    """The system prompt that it was trained with."""


def is_hub_id(name: str) -> bool:
    """Tell whether a name can be one of the hub's, and is no path."""
    return _HUB_ID.fullmatch(name) is not None


def adapter_card(card: Card) -> str:
    """Write the card of an adapter in PEFT's format."""
    return _write(card, library="peft", tags=_adapter_tags(card), snippet=_adapter_snippet(card))


def model_card(card: Card) -> str:
    """Write the card of a merged model."""
    return _write(card, library="transformers", tags=["lorakeet"], snippet=_model_snippet(card))


def _adapter_tags(card: Card) -> list[str]:
    """Return the tags that PEFT writes; the first only where it names something on the hub."""
    base = [f"base_model:adapter:{card.base}"] if is_hub_id(card.base) else []
    return [*base, "lora", "lorakeet", "transformers"]


def _write(card: Card, *, library: str, tags: list[str], snippet: str) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=card.base if is_hub_id(card.base) else None,
        library_name=library,
        pipeline_tag="text-generation",
        license=card.license,
        datasets=list(card.datasets) or None,
        tags=tags,
    )
    title = card.name.rpartition("/")[2] or ("Adapter" if library == "peft" else "Model")
    parts = [f"---\n{data.to_yaml()}\n---\n", f"# {title}\n", f"{_about(card, library)}\n"]
    parts += ["## Use\n", f"```python\n{snippet}```\n"]
    if card.system is not None:
        parts.append(f"It was trained with this system prompt:\n\n```text\n{card.system}\n```\n")
    if card.data:
        parts.append("## Data\n\n" + _list(card.data))
    for heading, table in (("Figures", card.figures), ("Settings", card.settings), ("SHA-256", card.hashes)):
        if table:
            parts.append(f"## {heading}\n\n{_table(table)}")
    if card.proofs:
        parts.append("## Proofs\n\n" + _list(card.proofs))
    return "\n".join(parts)


def _about(card: Card, library: str) -> str:
    kind = "A LoRA adapter for" if library == "peft" else "A fine-tuned model of"
    base = card.base or "an unnamed base model"
    if is_hub_id(base):
        base = f"[{base}](https://huggingface.co/{base})"
    elif os.path.isabs(base):  # where it lies is nobody's business
        base = os.path.basename(base)
    return f"{kind} {base}, made with lorakeet. {card.about}".rstrip()


def _adapter_snippet(card: Card) -> str:
    base = card.base if is_hub_id(card.base) else "PATH-OF-THE-BASE-MODEL"
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")
model = PeftModel.from_pretrained(model, "{card.name or _UNKNOWN_ID}")
{_chat(card)}"""


def _model_snippet(card: Card) -> str:
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{card.name or _UNKNOWN_ID}", dtype="auto")
{_chat(card)}"""


def _chat(card: Card) -> str:
    """Return the lines that load the tokenizer and ask one question."""
    system = [] if card.system is None else [{"role": "system", "content": card.system}]
    messages = [*system, {"role": "user", "content": "Hello!"}]
    return f"""tokenizer = AutoTokenizer.from_pretrained("{card.name or _UNKNOWN_ID}")
messages = {messages!r}
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=100, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def _list(lines: tuple[str, ...]) -> str:
    return "".join(f"- {_line(line)}\n" for line in lines)


def _table(rows: Mapping[str, Any]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {_cell(key)} | {_cell(str(value))} |\n" for key, value in rows.items())


def _line(text: str) -> str:
    """Keep a text on one line."""
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
