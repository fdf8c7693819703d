"""Rows of every known shape become Conversations; what does not fit stops with the row's place and field.

data in: (place, row as a dictionary) → out: Conversation. No files (read.py), no template, no tokens.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lorakeet.data import strict_json
from lorakeet.data.conversation import ROLES, Conversation, Message, joined
from lorakeet.data.marks import MARK_KEYS, refuse_templated, refuse_verdict, train_mark
from lorakeet.data.values import (
    EMPTY,
    as_content,
    as_list,
    as_object,
    as_text,
    kind,
    maybe_json,
    names,
    without_null_fields,
    wrong,
)
from lorakeet.errors import ConfigError, DataError

Reasoning = Literal["keep", "drop"]
"""What is done with reasoning that stands in a field of its own."""

ROLE_NAMES = {"developer": "system", "function": "tool"}
"""OpenAI's newer and older names of roles."""

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
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_MESSAGE_KEYS = {
    *("role", "content", "from", "value", "name", "id", "tool_calls", "tool_call_id", "function_call"),
    *_REASONING_KEYS,
    *MARK_KEYS,
}


@dataclass
class Notes:
    """What the reader accepted but a person should know, and how often."""

    counts: dict[str, int] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    """The format of each file."""

    def add(self, text: str, count: int = 1) -> None:
        """Count one occurrence, or several."""
        if count:
            self.counts[text] = self.counts.get(text, 0) + count


@dataclass(frozen=True)
class RowReader:
    """Turn rows of one format into Conversations."""

    format: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """Their column for each of our keys."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Our role for each of theirs, before the format's own aliases."""
    notes: Notes = field(default_factory=Notes)
    merge_turns: bool = False
    """Join turns of one role that follow each other."""
    reasoning: Reasoning | None = None
    is_columnar: bool = False
    """The rows come from columns, where a field that one row lacks is null as soon as another row has it."""

    def read(self, row: Any, place: str) -> Conversation:
        """Build the Conversation of one row. Raises DataError naming place and field."""
        row = as_object(row, place)
        refuse_verdict(row, place, self.columns)
        renamed = self._rename(row, place)
        required = FORMATS[self.format].required
        if not any(keys <= renamed.keys() for keys in required):
            wanted = " or ".join(" + ".join(sorted(keys)) for keys in required)
            raise DataError(
                "E-DATA-18",
                f"no {wanted} in this row; keys found: {names(row)}",
                place=place,
                fix=f"Give every row the keys of the format {self.format}, or map them with --columns",
            )
        for key in renamed.keys() - FORMATS[self.format].keys:
            if renamed[key] not in EMPTY:
                self.notes.add(f"key ignored in rows: {key}")
        conversation = FORMATS[self.format].build(self, renamed, place)
        if conversation.text is None:
            if self.merge_turns:
                conversation = joined(conversation)
            check_messages(conversation)
        return conversation

    def _rename(self, row: dict[str, Any], place: str) -> dict[str, Any]:
        if not self.columns:
            return row
        missing = [theirs for theirs in self.columns.values() if theirs not in row]
        if missing:
            raise DataError(
                "E-DATA-18", f'no column "{missing[0]}"; keys found: {names(row)}', place=place, fix="Correct --columns"
            )
        taken = set(self.columns.values()) | set(self.columns)
        rest = {key: value for key, value in row.items() if key not in taken}
        return {**rest, **{ours: row[theirs] for ours, theirs in self.columns.items()}}

    def message(self, item: Any, place: str, where: str, aliases: Mapping[str, str] | None = None) -> Message:
        """Read one message in either spelling, role/content or from/value."""
        if not isinstance(item, dict):
            raise wrong("E-DATA-11", f"{where} is {kind(item)}; expected an object", place)
        role_key = "from" if "from" in item and "role" not in item else "role"
        content_key = "value" if "value" in item and "content" not in item else "content"
        for key in item.keys() - _MESSAGE_KEYS:
            if item[key] not in (None, [], ""):
                self.notes.add(f"key ignored in messages: {key}")
        role = self.role(item.get(role_key), place, f"{where}.{role_key}", aliases)
        if role == "function_call":
            text = as_text(item.get(content_key), place, f"{where}.{content_key}")
            calls = self._calls(strict_json.loads(text, f"{place} {where}.{content_key}"), place, f"{where}.{content_key}")
            return Message("assistant", "", train_mark(item, text, place, where, "assistant"), calls)
        calls = self._message_calls(item, place, where, role)
        given = item.get(content_key)
        if given is None and calls:
            given = ""
        content, thoughts = as_content(given, place, f"{where}.{content_key}")
        train = train_mark(item, content, place, where, role)
        content = self.with_reasoning(item, content, place, where, thoughts, role)
        name = item.get("name")
        if name is not None:
            name = as_text(name, place, f"{where}.name")
        return Message(role, content, train, calls, name)  # type: ignore[arg-type]

    def _message_calls(self, item: dict[str, Any], place: str, where: str, role: str) -> tuple[dict[str, Any], ...]:
        """Read the calls of a message: `tool_calls`, or the one that OpenAI's older format has under `function_call`."""
        keys = [key for key in ("tool_calls", "function_call") if item.get(key)]
        if not keys:
            return ()
        if role != "assistant":
            raise wrong("E-DATA-108", f"{where}.{keys[0]} stands in a {role} message", place)
        if len(keys) > 1:
            raise wrong("E-DATA-108", f"{where} has both tool_calls and function_call", place)
        return self._calls(item[keys[0]], place, f"{where}.{keys[0]}")

    def with_reasoning(
        self, item: dict[str, Any], content: str, place: str, where: str, thoughts: str = "", role: str = "assistant"
    ) -> str:
        """Put the reasoning of a message or row before its answer, or leave it out, as was asked for.

        Raises DataError if nothing was asked for: an answer without its reasoning is another answer.
        """
        found = {key: item[key] for key in _REASONING_KEYS if item.get(key) not in EMPTY}
        texts = {key: as_text(value, place, f"{where}.{key}".lstrip(".")) for key, value in found.items()}
        if thoughts:
            texts["content"] = thoughts
        if not texts:
            return content
        if role != "assistant":
            raise wrong("E-DATA-193", f"{where}.{next(iter(texts))} holds reasoning in a {role} message", place)
        if self.reasoning is None:
            raise DataError(
                "E-DATA-193",
                f"{where}.{next(iter(texts))} holds reasoning beside the answer".lstrip("."),
                place=place,
                fix="Keep it as <think> text before the answer with --reasoning keep, or leave it out with --reasoning drop",
            )
        if self.reasoning == "drop":
            self.notes.add("reasoning left out")
            return content
        if len(set(texts.values())) > 1:
            raise wrong("E-DATA-193", f"{' and '.join(texts)} hold different reasoning", place)
        thought = next(iter(texts.values())).strip("\n")
        return f"<think>\n{thought}\n</think>\n\n" + content.lstrip("\n")

    def _calls(self, value: Any, place: str, where: str) -> tuple[dict[str, Any], ...]:
        """Read tool calls: OpenAI's {"function": {...}}, or {"name", "arguments"}, alone or in a list."""
        calls = []
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            call = (item.get("function") or item) if isinstance(item, dict) else None
            if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "arguments" not in call:
                raise wrong("E-DATA-114", f"{where}[{i}] is no call with name and arguments", place)
            arguments = call["arguments"]
            if isinstance(arguments, str):
                arguments = strict_json.loads(arguments, f"{place} {where}[{i}].arguments")
            else:
                arguments = self._without_filler(arguments)
            if not isinstance(arguments, dict):
                raise wrong("E-DATA-114", f"{where}[{i}].arguments is {kind(arguments)}; expected an object", place)
            calls.append({"name": call["name"], "arguments": arguments})
        return tuple(calls)

    def tools(self, row: dict[str, Any], place: str) -> tuple[dict[str, Any], ...]:
        """Read the tool definitions of a row: `tools`, or `functions` in OpenAI's older format."""
        keys = [key for key in ("tools", "functions") if row.get(key) not in EMPTY]
        if not keys:
            return ()
        if len(keys) > 1:
            raise wrong("E-DATA-113", "the row has both tools and functions", place)
        value = row[keys[0]]
        tools = as_list(value, place, keys[0])
        for i, tool in enumerate(tools):
            if not isinstance(tool, dict):
                raise wrong("E-DATA-113", f"{keys[0]}[{i}] is {kind(tool)}; expected an object", place)
        return tuple(tools if isinstance(value, str) else self._without_filler(tools))

    def _without_filler(self, value: Any) -> Any:
        """Leave out the null fields that a columnar file gives every object whose neighbours have those fields."""
        if not self.is_columnar:
            return value
        kept, dropped = without_null_fields(value)
        self.notes.add("null field left out of tool calls and tool definitions, as filler of a columnar file", dropped)
        return kept

    def role(self, value: Any, place: str, where: str, aliases: Mapping[str, str] | None = None) -> str:
        """Map one role. Raises DataError for an unknown one: dropping it would change what is trained on."""
        known = {**ROLE_NAMES, **(aliases or {}), **self.roles}
        role = known.get(value, value) if isinstance(value, str) else None
        if role in ROLES or (role == "function_call" and aliases):
            return str(role)
        allowed = ", ".join(dict.fromkeys([*ROLES, *known]))
        shown = f'"{value[:60]}"' if isinstance(value, str) else kind(value)
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
                fix="Join turns of one role with --merge-turns" if message.role == previous else "Put the messages in order",
            )
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise DataError("E-DATA-23", f"messages[{i}] is an empty answer", place=place, fix="Write it, or remove the row")
        previous = message.role


def detect(row: Any, place: str, columns: Mapping[str, str] | None = None) -> str:
    """Tell the format from the keys of a row. Raises DataError if none fits, or more than one."""
    refuse_verdict(as_object(row, place), place, columns or {})
    keys = set(columns) if columns else set(row)
    found = fitting(keys)
    if len(found) == 1:
        return found[0]
    if columns:
        known_keys = sorted({key for known in FORMATS.values() for required in known.required for key in required})
        raise ConfigError(
            "E-CFG-125",
            f"the keys {names(columns)} fit {'two formats' if found else 'no format'}",
            place="--columns",
            fix=f"Map ours=theirs, where ours is of: {', '.join(known_keys)}",
        )
    if not found:
        raise DataError(
            "E-DATA-18",
            f"no messages, and no other known format; keys found: {names(row)}",
            place=place,
            fix=f'Save the list under "{under}" as a file of its own'
            if (under := _key_of_rows(row))
            else "Map the columns, for example --columns prompt=NAME,completion=NAME",
        )
    raise DataError("E-DATA-19", f"keys fit two formats: {' and '.join(found)}", place=place, fix="Name one with --format")


def fitting(keys: Iterable[str]) -> list[str]:
    """List the formats whose required keys are there."""
    return [name for name, known in FORMATS.items() if any(required <= set(keys) for required in known.required)]


def _key_of_rows(row: dict[str, Any]) -> str | None:
    """Name the key under which an object that is no row seems to hold rows of a known format."""
    for key, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and fitting(value[0]):
            return key[:40]
    return None


def _messages_row(reader: RowReader, row: dict[str, Any], place: str) -> Conversation:
    items = as_list(row["messages"], place, "messages")
    messages = tuple(reader.message(item, place, f"messages[{i}]") for i, item in enumerate(items))
    return Conversation(messages, place, reader.tools(row, place))


def _sharegpt_row(reader: RowReader, row: dict[str, Any], place: str) -> Conversation:
    items = as_list(row["conversations"], place, "conversations")
    messages = [reader.message(item, place, f"conversations[{i}]", SHAREGPT_ROLES) for i, item in enumerate(items)]
    return Conversation((*_system(row, place), *messages), place, reader.tools(row, place))


def _alpaca_row(reader: RowReader, row: dict[str, Any], place: str) -> Conversation:
    messages = _system(row, place)
    history = row.get("history")
    for i, pair in enumerate(as_list(history, place, "history") if history is not None else []):
        if not isinstance(pair, list) or len(pair) != 2:
            raise wrong("E-DATA-110", f"history[{i}] is {kind(pair)}; expected a pair of texts", place)
        messages.append(Message("user", as_text(pair[0], place, f"history[{i}][0]")))
        messages.append(Message("assistant", as_text(pair[1], place, f"history[{i}][1]")))
    prompt = as_text(row["instruction"], place, "instruction")
    extra = row.get("input")
    if extra is not None and (text := as_text(extra, place, "input")):
        prompt = f"{prompt}\n{text}" if prompt else text
    output = as_text(row["output"], place, "output")
    for name, value in (("instruction", prompt), ("output", output)):
        refuse_templated(value, place, name, is_whole=False)
    messages += [Message("user", prompt), Message("assistant", reader.with_reasoning(row, output, place, ""))]
    return Conversation(tuple(messages), place)


def _prompt_completion_row(reader: RowReader, row: dict[str, Any], place: str) -> Conversation:
    ask, answer = ("prompt", "completion") if "prompt" in row and "completion" in row else ("question", "answer")
    prompt, completion = maybe_json(row[ask], place, ask), maybe_json(row[answer], place, answer)
    if isinstance(prompt, list) and isinstance(completion, list):
        context = [reader.message(item, place, f"{ask}[{i}]") for i, item in enumerate(prompt)]
        answers = [reader.message(item, place, f"{answer}[{i}]") for i, item in enumerate(completion)]
        # Only the completion is trained on, also if the prompt holds earlier answers.
        context = [Message(m.role, m.content, False if m.role == "assistant" else None, m.tool_calls, m.name) for m in context]
        return Conversation((*context, *answers), place, reader.tools(row, place))
    question, reply = as_text(prompt, place, ask), as_text(completion, place, answer)
    for name, value in ((ask, question), (answer, reply)):
        refuse_templated(value, place, name, is_whole=False)
    messages = [Message("user", question), Message("assistant", reader.with_reasoning(row, reply, place, ""))]
    return Conversation((*_system(row, place), *messages), place)


def _text_row(reader: RowReader, row: dict[str, Any], place: str) -> Conversation:
    text = as_text(row["text"], place, "text")
    if not text.strip():
        raise DataError("E-DATA-23", "text is empty: nothing to train", place=place, fix="Write it, or remove the row")
    refuse_templated(text, place, "text", is_whole=True)
    return Conversation((), place, text=text)


@dataclass(frozen=True)
class _Format:
    required: tuple[frozenset[str], ...]
    """Alternative sets of keys that a row must have."""
    keys: frozenset[str]
    """Every key that is read."""
    build: Callable[[RowReader, dict[str, Any], str], Conversation]


def _one_of(*alternatives: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(keys.split()) for keys in alternatives)


_TOOLS = {"tools", "functions"}
FORMATS: dict[str, _Format] = {
    "messages": _Format(_one_of("messages"), frozenset({"messages"} | _TOOLS), _messages_row),
    "sharegpt": _Format(_one_of("conversations"), frozenset({"conversations", "system"} | _TOOLS), _sharegpt_row),
    "alpaca": _Format(
        _one_of("instruction output"),
        frozenset({"instruction", "input", "output", "history", "system", *_REASONING_KEYS}),
        _alpaca_row,
    ),
    "prompt-completion": _Format(
        _one_of("prompt completion", "question answer"),
        frozenset({"prompt", "completion", "question", "answer", "system", *_REASONING_KEYS} | _TOOLS),
        _prompt_completion_row,
    ),
    "text": _Format(_one_of("text"), frozenset({"text"}), _text_row),
}


def check_options(format: str | None, roles: Mapping[str, str] | None, reasoning: str | None = None) -> None:
    """Refuse an unknown format name, a mapping to an unknown role, or an unknown choice for reasoning."""
    if reasoning not in (None, *get_args(Reasoning)):
        choices = ", ".join(get_args(Reasoning))
        raise ConfigError("E-CFG-190", f'is "{reasoning}"', place="--reasoning", fix=f"Choose one of {choices}")
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
    return [Message("system", as_text(value, place, "system"))] if value not in (None, "") else []
