"""Which chat template a tokenizer's model was trained with.

data in: a tokenizer, maybe a name → out: a Template, which renders a conversation as pieces: one of the known layouts
if the tokenizer's template text, its control tokens or the name say so, else its own text as Jinja in a sandboxed
process (jinja.py). Nothing is rendered here.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.templates.known import KNOWN_TEXTS, LAYOUTS, normalized_hash
from lorakeet.data.templates.layout import Layout
from lorakeet.data.templates.piece import Piece
from lorakeet.errors import ConfigError

if TYPE_CHECKING:
    from lorakeet.data.tokenizer import Tokenizer


class Template(Protocol):
    """What encode.py needs of a template."""

    @property
    def name(self) -> str:
        """What the template is called in messages and options."""

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever rendering changes."""

    @property
    def writes_day(self) -> bool:
        """Whether what is rendered depends on the day."""

    def on(self, day: str | None) -> "Template":
        """Return the template as it renders on a day, YYYY-MM-DD; None is the day on which it renders."""

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> list[Piece]:
        """Write the conversation as pieces; with add_generation_prompt it ends where the next answer begins."""

    def holds_answer(self, decoded: str, message: Message) -> bool:
        """Tell whether the decoded text of a span, without its end token, is the message's answer."""


def template_for(tokenizer: "Tokenizer", *, name: str | None = None) -> Template:
    """Choose the template: by name, else by the tokenizer's own template text, else by its control tokens.

    Raises ConfigError for an unknown name, for a vocabulary that lacks the template's control tokens, and if
    nothing shows which template the model was trained with.
    """
    if name is not None and name != "jinja":
        if name not in LAYOUTS:
            raise ConfigError(
                "E-CFG-121", f'unknown template "{name}"', place="--template", fix=f"Known: {', '.join(LAYOUTS)}, jinja"
            )
        return _fit(LAYOUTS[name], tokenizer)
    if tokenizer.chat_template is not None:
        known = KNOWN_TEXTS.get(normalized_hash(tokenizer.chat_template)) if name is None else None
        if known is not None:
            return _fit(LAYOUTS[known], tokenizer)
        from lorakeet.data.templates.jinja import JinjaTemplate

        return JinjaTemplate(tokenizer)
    for candidate in ("phi4", "chatml", "phi4-mini", "phi3-mini"):
        wanted = LAYOUTS[candidate].control | set(LAYOUTS[candidate].tools) - {""}
        if name is None and wanted <= tokenizer.control_tokens.keys():
            return _fit(LAYOUTS[candidate], tokenizer)
    raise ConfigError(
        "E-CFG-122",
        "the tokenizer has no chat template and its control tokens fit none that is known",
        place=tokenizer.place,
        fix="Name one with --template",
    )


def _fit(layout: Layout, tokenizer: "Tokenizer") -> Layout:
    """Return the layout with the tokenizer's own bos and eos, having checked that its control tokens exist."""
    if layout.bos and tokenizer.bos_token:
        layout = replace(layout, bos=tokenizer.bos_token)
    if layout.eos and tokenizer.eos_token:
        layout = replace(layout, eos=tokenizer.eos_token)
    missing = sorted(layout.control - tokenizer.control_tokens.keys())
    if missing:
        raise ConfigError(
            "E-CFG-123",
            f"the template {layout.name} needs tokens that the vocabulary lacks: {', '.join(missing)}",
            place=tokenizer.place,
            fix="Name a template that fits the model with --template",
        )
    return layout
