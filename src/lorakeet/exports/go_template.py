"""Ollama's chat template: a layout written in Go's template language, and the part of that language it uses, rendered.

data in: a Layout → out: the text behind TEMPLATE in a Modelfile; and such a text with messages → out: the prompt, as
Ollama renders it. The renderer knows what the writer writes and no more: range with two variables, if and else, eq, ne,
lt, len, slice, index, fields.
Source of the language: Go's text/template; of the data: ollama/ollama, template/template.go.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorakeet.data.conversation import Conversation
from lorakeet.data.templates.layout import Layout
from lorakeet.errors import ExportError
from lorakeet.exports.chat_template import turn_frame


def go_text(layout: Layout) -> str:
    """Write a layout in Go's template language.

    Raises: ExportError E-EXP-204 if a text of the layout would be read as a template itself.
    """
    texts = (layout.bos, layout.open, layout.sep, layout.after_header, layout.end, layout.after_end, layout.default_system)
    if any(text and ("{{" in text or '"""' in text) for text in texts):
        raise ExportError("E-EXP-204", "the chat template's own text would be read as Go", place=layout.name)
    text = layout.bos
    if layout.default_system is not None:
        before, after = turn_frame(layout, "system")
        text += '{{ if ne (index .Messages 0).Role "system" }}' + before + layout.default_system + after + "{{ end }}"
    turns = [_turn(layout, role) for role in layout.roles]
    branches = "{{ else ".join(f'if eq $m.Role "{role}" }}}}{turn}' for role, turn in turns)
    text += "{{ range $i, $m := .Messages }}{{ " + branches + "{{ end }}{{ end }}"
    if layout.header_after_user:
        return text
    return text + _unless_answer_is_last(turn_frame(layout, "assistant")[0])


def _turn(layout: Layout, role: str) -> tuple[str, str]:
    """Return a role and what is written for a message of it; an answer that is to be continued is left open."""
    before, after = turn_frame(layout, role)
    content = "{{ $m.Content }}"
    if role == "assistant":
        before = "" if layout.header_after_user else before
        return role, before + content + "{{ if lt $i (len (slice $.Messages 1)) }}" + after + "{{ end }}"
    if role == "user" and layout.header_after_user:
        after += turn_frame(layout, "assistant")[0]
    text = before + content + after
    if role == "system" and layout.skips_empty_system:
        text = "{{ if $m.Content }}" + text + "{{ end }}"
    return role, text


def _unless_answer_is_last(header: str) -> str:
    """Invite an answer, unless the last message is one that is to be continued."""
    return '{{ if ne (index .Messages (len (slice .Messages 1))).Role "assistant" }}' + header + "{{ end }}"


_ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\(|\)|[^\s()]+')


def render_go(text: str, conversation: Conversation) -> str:
    """Render a template with a conversation's messages, as Ollama would: it joins neighbours of the same role."""
    messages: list[dict[str, str]] = []
    for message in conversation.messages:
        if messages and messages[-1]["Role"] == message.role:
            messages[-1]["Content"] += f"\n\n{message.content}"
        else:
            messages.append({"Role": message.role, "Content": message.content})
    texts_and_actions = _ACTION.split(text)
    parts = iter(list(zip(texts_and_actions[::2], [*texts_and_actions[1::2], ""], strict=True)))
    nodes, _ = _parse(parts)
    return "".join(_rendered(nodes, {"": {"Messages": messages}, "$": {"Messages": messages}}))


@dataclass(frozen=True)
class _If:
    branches: list[tuple[str, "list[Node]"]]


@dataclass(frozen=True)
class _Range:
    index: str
    element: str
    values: str
    body: "list[Node]"


@dataclass(frozen=True)
class _Expression:
    text: str


Node = str | _If | _Range | _Expression


def _parse(parts: Iterator[tuple[str, str]]) -> tuple[list[Node], str]:
    """Read up to the else or end that belongs to the caller; return the nodes and that action."""
    nodes: list[Node] = []
    for text, action in parts:
        nodes.append(text)
        word, _, rest = action.strip().partition(" ")
        if word in ("else", "end", ""):
            return nodes, action.strip()
        if word == "if":
            nodes.append(_If(list(_branches(rest, parts))))
        elif word == "range":
            names, _, values = rest.partition(":=")
            index, element = (name.strip() for name in names.split(","))
            nodes.append(_Range(index, element, values, _parse(parts)[0]))
        else:
            nodes.append(_Expression(action))
    return nodes, ""


def _branches(condition: str, parts: Iterator[tuple[str, str]]) -> Iterator[tuple[str, list[Node]]]:
    """Read the branches of an if, each with its condition."""
    while True:
        body, ending = _parse(parts)
        yield condition, body
        if ending == "end":
            return
        condition = ending.removeprefix("else").strip().removeprefix("if") or '"true"'


def _rendered(nodes: list[Node], scope: dict[str, Any]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, _Expression):
            yield str(_value(node.text, scope))
        elif isinstance(node, _Range):
            for i, element in enumerate(_value(node.values, scope)):
                yield from _rendered(node.body, {**scope, node.index: i, node.element: element, "": element})
        else:
            taken = next((body for condition, body in node.branches if _value(condition, scope)), [])
            yield from _rendered(taken, scope)


def _value(expression: str, scope: dict[str, Any]) -> Any:
    """Evaluate an expression: a function and its arguments, or one argument."""
    return _call(_tree(iter(_WORD.findall(expression))), scope)


def _tree(words: Iterator[str]) -> list[Any]:
    """Nest what is in parentheses; a field behind them belongs to them."""
    found: list[Any] = []
    for word in words:
        if word == "(":
            found.append(_tree(words))
        elif word == ")":
            return found
        elif found and isinstance(found[-1], list) and word.startswith("."):
            found[-1] = ["field", found[-1], word[1:]]
        else:
            found.append(word)
    return found


def _call(tree: Any, scope: dict[str, Any]) -> Any:
    if isinstance(tree, str):
        return _operand(tree, scope)
    if tree[0] == "field":
        return _call(tree[1], scope)[tree[2]]
    if len(tree) == 1:
        return _call(tree[0], scope)
    arguments = [_call(argument, scope) for argument in tree[1:]]
    return _FUNCTIONS[tree[0]](*arguments)


_FUNCTIONS: dict[str, Any] = {
    "eq": lambda one, *others: one in others,
    "ne": lambda one, other: one != other,
    "lt": lambda one, other: one < other,
    "len": len,
    "slice": lambda sequence, start: sequence[start:],
    "index": lambda sequence, i: sequence[i],
}


def _operand(word: str, scope: dict[str, Any]) -> Any:
    """Look up a literal, a variable or a field of one."""
    if word.startswith('"'):
        return word[1:-1]
    if word.isdigit():
        return int(word)
    name, *fields = word.split(".")
    value = scope[name]
    for field in filter(None, fields):
        value = value[field]
    return value
