"""Rows of every known shape become Conversations; what does not fit stops with the row's place and field.

data in: (place, row as a dictionary) → out: Conversation. No files (read.py), no template, no tokens.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorakeet.data import strict_json
from lorakeet.data.conversation import ROLES, Conversation, Message
from lorakeet.errors import ConfigError, DataError

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "function_call": "function_call",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}
_MESSAGE_KEYS = {"role", "content", "weight", "train", "name", "tool_calls", "tool_call_id", "from", "value", "id"}


@dataclass
class Notes:
    """What the reader accepted but a person should know, and how often."""

    counts: dict[str, int] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    """The format of each file."""

    def add(self, text: str) -> None:
        """Count one occurrence."""
        self.counts[text] = self.counts.get(text, 0) + 1


@dataclass(frozen=True)
class RowReader:
    """Turn rows of one format into Conversations."""

    format: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """Their column for each of our keys."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Our role for each of theirs, before the format's own aliases."""
    notes: Notes = field(default_factory=Notes)

    def read(self, row: Any, place: str) -> Conversation:
        """Build the Conversation of one row. Raises DataError naming place and field."""
        row = _object(row, place)
        renamed = self._rename(row, place)
        required = FORMATS[self.format].required
        if not any(keys <= renamed.keys() for keys in required):
            wanted = " or ".join(" + ".join(sorted(keys)) for keys in required)
            raise DataError(
                "E-DATA-18",
                f"no {wanted} in this row; keys found: {_names(row)}",
                place=place,
                fix=f"Give every row the keys of the format {self.format}, or map them with --columns",
            )
        conversation = FORMATS[self.format].build(self, renamed, place)
        if conversation.text is None:
            check_messages(conversation)
        return conversation

    def _rename(self, row: dict[str, Any], place: str) -> dict[str, Any]:
        if not self.columns:
            return row
        missing = [theirs for theirs in self.columns.values() if theirs not in row]
        if missing:
            raise DataError(
                "E-DATA-18", f'no column "{missing[0]}"; keys found: {_names(row)}', place=place, fix="Correct --columns"
            )
        taken = set(self.columns.values()) | set(self.columns)
        rest = {key: value for key, value in row.items() if key not in taken}
        return {**rest, **{ours: row[theirs] for ours, theirs in self.columns.items()}}

    def message(self, item: Any, place: str, where: str, aliases: Mapping[str, str] | None = None) -> Message:
        """Read one message in either spelling, role/content or from/value."""
        if not isinstance(item, dict):
            raise _wrong("E-DATA-11", f"{where} is {_kind(item)}; expected an object", place)
        role_key = "from" if "from" in item and "role" not in item else "role"
        content_key = "value" if "value" in item and "content" not in item else "content"
        for key in item.keys() - _MESSAGE_KEYS:
            if item[key] not in (None, [], ""):
                self.notes.add(f"key ignored in messages: {key}")
        role = self.role(item.get(role_key), place, f"{where}.{role_key}", aliases)
        calls: tuple[dict[str, Any], ...] = ()
        if role == "function_call":
            text = _text(item.get(content_key), place, f"{where}.{content_key}")
            calls = _calls(strict_json.loads(text, f"{place} {where}.{content_key}"), place, f"{where}.{content_key}")
            return Message("assistant", "", _train(item, place, where, "assistant"), calls)
        if item.get("tool_calls"):
            if role != "assistant":
                raise _wrong("E-DATA-108", f"{where}.tool_calls stands in a {role} message", place)
            calls = _calls(item["tool_calls"], place, f"{where}.tool_calls")
        content = item.get(content_key)
        content = "" if content is None and calls else _text(content, place, f"{where}.{content_key}")
        name = item.get("name")
        if name is not None:
            name = _text(name, place, f"{where}.name")
        return Message(role, content, _train(item, place, where, role), calls, name)  # type: ignore[arg-type]

    def role(self, value: Any, place: str, where: str, aliases: Mapping[str, str] | None = None) -> str:
        """Map one role. Raises DataError for an unknown one: dropping it would change what is learned."""
        known = {**(aliases or {}), **self.roles}
        role = known.get(value, value) if isinstance(value, str) else None
        if role in ROLES or (role == "function_call" and aliases):
            return str(role)
        allowed = ", ".join(dict.fromkeys([*ROLES, *known]))
        shown = f'"{value[:60]}"' if isinstance(value, str) else _kind(value)
        raise DataError(
            "E-DATA-20", f"{where} is {shown}; allowed: {allowed}", place=place, fix="Fix the row or map the role with --roles"
        )


def check_messages(conversation: Conversation) -> None:
    """Check the order of roles and that there is an answer. Raises DataError with the position."""
    messages, place = conversation.messages, conversation.place
    if not any(message.role == "assistant" for message in messages):
        raise DataError(
            "E-DATA-24", "nothing to train: no assistant message", place=place, fix="Add the answer, or remove the row"
        )
    allowed = {
        "": ("system", "user"),
        "system": ("user",),
        "user": ("assistant",),
        "assistant": ("user",),
        "tool": ("tool", "assistant"),
    }
    previous = ""
    for i, message in enumerate(messages):
        follows = allowed[previous] + (("tool",) if i and messages[i - 1].tool_calls else ())
        if message.role not in follows:
            after = f"after {previous}" if previous else "as the first message"
            raise DataError(
                "E-DATA-25",
                f'messages[{i}].role is "{message.role}" {after}; expected {" or ".join(follows)}',
                place=place,
                fix="Put the messages in order",
            )
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise DataError("E-DATA-23", f"messages[{i}] is an empty answer", place=place, fix="Write it, or remove the row")
        previous = message.role


def detect(row: Any, place: str, columns: Mapping[str, str] | None = None) -> str:
    """Tell the format from the keys of a row. Raises DataError if none fits, or more than one."""
    keys = set(columns) if columns else set(_object(row, place))
    found = [name for name, known in FORMATS.items() if any(required <= keys for required in known.required)]
    if len(found) == 1:
        return found[0]
    if columns:
        known_keys = sorted({key for known in FORMATS.values() for required in known.required for key in required})
        raise ConfigError(
            "E-CFG-125",
            f"the keys {_names(columns)} fit {'two formats' if found else 'no format'}",
            place="--columns",
            fix=f"Map ours=theirs, where ours is of: {', '.join(known_keys)}",
        )
    if not found:
        raise DataError(
            "E-DATA-18",
            f"no messages, and no other known format; keys found: {_names(row)}",
            place=place,
            fix="Map the columns, for example --columns prompt=NAME,completion=NAME",
        )
    raise DataError("E-DATA-19", f"keys fit two formats: {' and '.join(found)}", place=place, fix="Name one with --format")


def _messages_row(reader: RowReader, row: dict[str, Any], place: str) -> Conversation:
    items = _list(row["messages"], place, "messages")
    messages = tuple(reader.message(item, place, f"messages[{i}]") for i, item in enumerate(items))
    return Conversation(messages, place, _tools(row.get("tools"), place))


def _sharegpt_row(reader: RowReader, row: dict[str, Any], place: str) -> Conversation:
    items = _list(row["conversations"], place, "conversations")
    messages = [reader.message(item, place, f"conversations[{i}]", SHAREGPT_ROLES) for i, item in enumerate(items)]
    return Conversation((*_system(row, place), *messages), place, _tools(row.get("tools"), place))


def _alpaca_row(reader: RowReader, row: dict[str, Any], place: str) -> Conversation:
    messages = _system(row, place)
    history = row.get("history")
    for i, pair in enumerate(_list(history, place, "history") if history is not None else []):
        if not isinstance(pair, list) or len(pair) != 2:
            raise _wrong("E-DATA-110", f"history[{i}] is {_kind(pair)}; expected a pair of texts", place)
        messages.append(Message("user", _text(pair[0], place, f"history[{i}][0]")))
        messages.append(Message("assistant", _text(pair[1], place, f"history[{i}][1]")))
    prompt = _text(row["instruction"], place, "instruction")
    extra = row.get("input")
    if extra is not None and (text := _text(extra, place, "input")):
        prompt = f"{prompt}\n{text}" if prompt else text
    messages += [Message("user", prompt), Message("assistant", _text(row["output"], place, "output"))]
    return Conversation(tuple(messages), place)


def _prompt_completion_row(reader: RowReader, row: dict[str, Any], place: str) -> Conversation:
    ask, answer = ("prompt", "completion") if "prompt" in row and "completion" in row else ("question", "answer")
    prompt, completion = _maybe_json(row[ask], place, ask), _maybe_json(row[answer], place, answer)
    if isinstance(prompt, list) and isinstance(completion, list):
        context = [reader.message(item, place, f"{ask}[{i}]") for i, item in enumerate(prompt)]
        learned = [reader.message(item, place, f"{answer}[{i}]") for i, item in enumerate(completion)]
        # Only the completion is learned, also where the prompt holds earlier answers.
        context = [Message(m.role, m.content, False if m.role == "assistant" else None, m.tool_calls, m.name) for m in context]
        return Conversation((*context, *learned), place, _tools(row.get("tools"), place))
    messages = [Message("user", _text(prompt, place, ask)), Message("assistant", _text(completion, place, answer))]
    return Conversation((*_system(row, place), *messages), place)


def _text_row(reader: RowReader, row: dict[str, Any], place: str) -> Conversation:
    text = _text(row["text"], place, "text")
    if not text.strip():
        raise DataError("E-DATA-23", "text is empty: nothing to train", place=place, fix="Write it, or remove the row")
    return Conversation((), place, text=text)


@dataclass(frozen=True)
class _Format:
    required: tuple[frozenset[str], ...]
    """Alternative sets of keys that a row must have."""
    build: Callable[[RowReader, dict[str, Any], str], Conversation]


FORMATS: dict[str, _Format] = {
    "messages": _Format((frozenset({"messages"}),), _messages_row),
    "sharegpt": _Format((frozenset({"conversations"}),), _sharegpt_row),
    "alpaca": _Format((frozenset({"instruction", "output"}),), _alpaca_row),
    "prompt-completion": _Format(
        (frozenset({"prompt", "completion"}), frozenset({"question", "answer"})), _prompt_completion_row
    ),
    "text": _Format((frozenset({"text"}),), _text_row),
}


def check_options(format: str | None, roles: Mapping[str, str] | None) -> None:
    """Refuse an unknown format name, or a mapping to an unknown role."""
    if format is not None and format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        raise ConfigError(
            "E-CFG-126",
            f'unknown format "{format}"',
            place="--format",
            fix=f"Did you mean {near[0]}?" if near else f"Known: {', '.join(FORMATS)}",
        )
    for theirs, ours in (roles or {}).items():
        if ours not in ROLES:
            raise ConfigError(
                "E-CFG-127", f'{theirs} is mapped to "{ours}"', place="--roles", fix=f"Map to one of {', '.join(ROLES)}"
            )


def _system(row: dict[str, Any], place: str) -> list[Message]:
    """Read the system prompt that a row carries in a column of its own."""
    value = row.get("system")
    return [Message("system", _text(value, place, "system"))] if value not in (None, "") else []


def _tools(value: Any, place: str) -> tuple[dict[str, Any], ...]:
    if value in (None, "", []):
        return ()
    value = _list(value, place, "tools")
    for i, tool in enumerate(value):
        if not isinstance(tool, dict):
            raise _wrong("E-DATA-113", f"tools[{i}] is {_kind(tool)}; expected an object", place)
    return tuple(value)


def _calls(value: Any, place: str, where: str) -> tuple[dict[str, Any], ...]:
    """Read tool calls: OpenAI's {"function": {...}}, or {"name", "arguments"}, alone or in a list."""
    calls = []
    for i, item in enumerate(value if isinstance(value, list) else [value]):
        call = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "arguments" not in call:
            raise _wrong("E-DATA-114", f"{where}[{i}] is no call with name and arguments", place)
        arguments = call["arguments"]
        if isinstance(arguments, str):
            arguments = strict_json.loads(arguments, f"{place} {where}[{i}].arguments")
        if not isinstance(arguments, dict):
            raise _wrong("E-DATA-114", f"{where}[{i}].arguments is {_kind(arguments)}; expected an object", place)
        calls.append({"name": call["name"], "arguments": arguments})
    return tuple(calls)


def _train(item: dict[str, Any], place: str, where: str, role: str) -> bool | None:
    """Read a message's own mark: train true or false, or weight 1 or 0."""
    marks: list[bool] = []
    if (train := item.get("train")) is not None:
        if not isinstance(train, bool):
            raise _wrong("E-DATA-106", f"{where}.train is {_kind(train)}; expected true or false", place)
        marks.append(train)
    if (weight := item.get("weight")) is not None:
        if isinstance(weight, bool) or weight not in (0, 1):
            raise _wrong("E-DATA-106", f"{where}.weight is {str(weight)[:20]}; expected 0 or 1", place)
        marks.append(bool(weight))
    if len(set(marks)) > 1:
        raise _wrong("E-DATA-106", f"{where}.train and {where}.weight contradict each other", place)
    if role != "assistant":
        # Weight 1 is what some exporters write on every message; only an explicit train: true asks for the impossible.
        if item.get("train") is True:
            raise DataError(
                "E-DATA-107",
                f"{where}.train is true on a {role} message; only answers are trained one by one",
                place=place,
                fix="Remove it, or learn everything with --learn text",
            )
        return None
    return marks[0] if marks else None


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise _wrong("E-DATA-11", f"is {_kind(row)}; expected object", place)
    return row


def _maybe_json(value: Any, place: str, where: str) -> Any:
    """Parse a list that a CSV column or an exporter wrote as JSON text."""
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[\n", "[ "):
        try:
            parsed = strict_json.loads(value, f"{place} {where}")
        except DataError:
            return value
        return parsed if isinstance(parsed, list) and all(isinstance(item, dict) for item in parsed) else value
    return value


def _list(value: Any, place: str, where: str) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = strict_json.loads(value, f"{place} {where}")
    if not isinstance(value, list):
        raise _wrong("E-DATA-115", f"{where} is {_kind(value)}; expected a list", place)
    return value


def _text(value: Any, place: str, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        raise _wrong("E-DATA-22", f"{where} is a list; text only", place)
    raise _wrong("E-DATA-21", f"{where} is {_kind(value)}; must be text", place)


def _wrong(code: str, message: str, place: str) -> DataError:
    return DataError(code, message, place=place, fix="Fix the row")


def _kind(value: Any) -> str:
    """Name a JSON value's kind, and small values themselves."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {str(value)[:20]}"
    kinds = {"str": "text", "list": "a list", "dict": "an object"}
    return kinds.get(type(value).__name__, type(value).__name__)


def _names(keys: Any) -> str:
    names = [str(key)[:40] for key in keys]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"
