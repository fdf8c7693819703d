"""Errors are one line, survive pickling, and docs/errors.md lists every code there is."""

import pickle
import re
from pathlib import Path

import pytest

from lorakeet import errors

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"\bE-[A-Z]+-\d+\b")


def test_every_code_of_the_source_is_listed_once_and_no_other():
    listed = re.findall(r"^\| `(E-[A-Z]+-\d+)` \| \S.*\|$", (ROOT / "docs" / "errors.md").read_text(), re.M)
    used = {code for file in (ROOT / "src").rglob("*.py") for code in CODE.findall(file.read_text(encoding="utf-8"))}
    assert sorted(used - set(listed)) == [], "docs/errors.md lacks these codes"
    assert sorted(set(listed) - used) == [], "docs/errors.md lists codes that are gone"
    order = [(kind, int(number)) for _, kind, number in (code.split("-") for code in listed)]
    assert order == sorted(set(order))


def test_an_error_is_one_line_with_code_place_message_and_fix():
    error = errors.DataError("E-DATA-4", "0\nconversations.", place="a.jsonl", fix="Name\ta file.")
    assert str(error) == "E-DATA-4 a.jsonl 0 conversations. Name a file."
    assert str(errors.DataError("E-DATA-4", "0 conversations")) == "E-DATA-4 0 conversations."


@pytest.mark.parametrize("kind", errors.LorakeetError.__subclasses__())
def test_errors_cross_processes_and_are_value_errors(kind):
    error = pickle.loads(pickle.dumps(kind("E-CFG-1", "is wrong", place="here", fix="Mend it")))
    assert isinstance(error, ValueError)
    assert (type(error), str(error)) == (kind, "E-CFG-1 here is wrong. Mend it.")
