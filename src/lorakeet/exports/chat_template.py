"""The chat template of an artefact, as Jinja: the one that the run was trained with, whatever the base brings.

data in: a run's template → out: Jinja text. Where training used the base's own text, it is that; where another layout
was named, it is written here from the layout. Tool definitions and calls are not written: they are rows' own text.
"""

import json
from pathlib import Path

from lorakeet.data.templates.layout import Layout
from lorakeet.data.templates.template import template_for
from lorakeet.errors import ExportError
from lorakeet.exports.artefact import Source
from lorakeet.files.durable import write_file
from lorakeet.models.tokenizer_files import TEMPLATE_FILE, copy_tokenizer


def jinja_text(source: Source) -> str:
    """Return the Jinja text that renders as the run's template does.

    Raises: ExportError E-EXP-204 if there is none.
    """
    own = source.tokenizer.chat_template
    if own is not None and template_for(source.tokenizer).fingerprint == source.template.fingerprint:
        return own
    if isinstance(source.template, Layout):
        return jinja_of(source.template)
    raise ExportError("E-EXP-204", "the run's chat template has no text", place=source.template.name)


def copy_tokenizer_of(source: Source, directory: Path) -> None:
    """Copy the base's tokenizer, with the template that the run was trained with if the base brings another.

    Raises: ExportError, as `jinja_text`.
    """
    copy_tokenizer(source.base, directory)
    text = jinja_text(source)
    if text != source.tokenizer.chat_template:
        write_file(directory / TEMPLATE_FILE, text.encode())


def jinja_of(layout: Layout) -> str:
    """Write a layout as Jinja."""
    before, after = turn_frame(layout, "{{ message['role'] }}")
    assistant = turn_frame(layout, "assistant")[0]
    text = _quoted(layout.bos)
    text += "{% for message in messages %}"
    if layout.default_system is not None:
        opening = turn_frame(layout, "system")
        text += "{% if loop.first and message['role'] != 'system' %}"
        text += _quoted(opening[0] + layout.default_system + opening[1]) + "{% endif %}"
    body = _header_of_message(layout, before) + "{{ message['content'] }}" + _quoted(after)
    if layout.header_after_user:
        body = f"{{% if message['role'] != 'assistant' %}}{_header_of_message(layout, before)}{{% endif %}}"
        body += "{{ message['content'] }}" + _quoted(after)
        body += "{% if message['role'] == 'user' %}" + _quoted(assistant) + "{% endif %}"
    if layout.skips_empty_system:
        body = "{% if message['role'] != 'system' or message['content'] %}" + body + "{% endif %}"
    text += body + "{% endfor %}"
    ending = _quoted("" if layout.header_after_user else assistant)
    return text + "{% if add_generation_prompt %}" + ending + "{% else %}" + _quoted(layout.eos) + "{% endif %}"


def turn_frame(layout: Layout, role: str) -> tuple[str, str]:
    """Return what a layout writes before and after the content of a turn."""
    head = f"{layout.open}{role}" if layout.open else f"<|{role}|>"
    return f"{head}{layout.sep}{layout.after_header}", f"{layout.end}{layout.after_end}"


def _header_of_message(layout: Layout, before: str) -> str:
    """Write the header with the role put in by Jinja; the text around it is quoted, for its line breaks."""
    left, _, right = before.partition("{{ message['role'] }}")
    return _quoted(left) + "{{ message['role'] }}" + _quoted(right)


def _quoted(text: str) -> str:
    """Write text so that Jinja gives it back to the letter."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""
