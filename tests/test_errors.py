"""Errors are one line, survive pickling, and docs/errors.md explains every code there is."""

import ast
import pickle
import re
from pathlib import Path

import pytest

from lorakeet import errors

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"\bE-[A-Z]+-\d+\b")


ENTRY = re.compile(
    r"^### (?P<code>E-[A-Z]+-\d+)\n\n(?P<meaning>.+)\n\n- Example: `(?P=code) (?P<example>.+)`\n- Fix: (?P<fix>.+)$", re.M
)


def entries():
    return list(ENTRY.finditer((ROOT / "docs" / "errors.md").read_text(encoding="utf-8")))


def sources():
    return [file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py")]


def test_every_code_of_the_source_is_explained_once_and_no_other():
    listed = [entry["code"] for entry in entries()]
    assert listed == re.findall(r"^### (\S+)$", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.M)
    used = {code for text in sources() for code in CODE.findall(text)}
    assert sorted(used - set(listed)) == [], "docs/errors.md lacks these codes"
    assert sorted(set(listed) - used) == [], "docs/errors.md lists codes that are gone"
    order = [(kind, int(number)) for _, kind, number in (code.split("-") for code in listed)]
    assert order == sorted(set(order))


def test_examples_say_what_the_source_says():
    """Each example holds a piece of text that stands beside its code in the source, so that a search finds this page."""
    said = {}
    for text in sources():
        for call in ast.walk(ast.parse(text)):
            code = getattr(call.args[0], "value", "") if isinstance(call, ast.Call) and call.args else ""
            if CODE.fullmatch(str(code)):
                pieces = [one.value for part in call.args[1:] for one in ast.walk(part) if isinstance(one, ast.Constant)]
                said.setdefault(code, []).extend(one for one in pieces if len(str(one).strip()) > 7)
    strange = [
        entry["code"]
        for entry in entries()
        if said.get(entry["code"]) and not any(str(piece).strip() in entry["example"] for piece in said[entry["code"]])
    ]
    assert strange == []


@pytest.mark.parametrize(
    ("message", "fix", "text"),
    [
        ("is gone", "Did you mean demo?", "E-CFG-1 is gone. Did you mean demo?"),
        ("is gone!", "Mend it..", "E-CFG-1 is gone! Mend it."),
        (
            "is gone",
            "Finish it: lorakeet train --resume -o 'a b'",
            "E-CFG-1 is gone. Finish it: lorakeet train --resume -o 'a b'",
        ),
        ("which one?", "", "E-CFG-1 which one?"),
    ],
)
def test_a_sentence_ends_with_one_mark_and_a_command_with_none(message, fix, text):
    assert str(errors.ConfigError("E-CFG-1", message, fix=fix)) == text


def test_an_error_is_one_line_with_code_place_message_and_fix():
    error = errors.DataError("E-DATA-4", "0\nconversations.", place="a.jsonl", fix="Name\ta file.")
    assert str(error) == "E-DATA-4 a.jsonl 0 conversations. Name a file."
    assert str(errors.DataError("E-DATA-4", "0 conversations")) == "E-DATA-4 0 conversations."


@pytest.mark.parametrize("kind", errors.LorakeetError.__subclasses__())
def test_errors_cross_processes_and_are_value_errors(kind):
    error = pickle.loads(pickle.dumps(kind("E-CFG-1", "is wrong", place="here", fix="Mend it")))
    assert isinstance(error, ValueError)
    assert (type(error), str(error)) == (kind, "E-CFG-1 here is wrong. Mend it.")
