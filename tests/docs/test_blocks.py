"""Every shell and Python block of the documentation is run, with a tiny model in place of Phi-3, or says why not.

The blocks of a page run in order in one folder. `<!-- not run: why -->` before a block leaves it out, `<!-- rows: NAME -->`
writes the block into a file of that name. What begins with `lorakeet` runs in this process; nothing else may be there.
"""

import json
import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from lorakeet.cli import main
from tests.cli.conftest import write_tiny_model

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|rows): (?P<note>[^\n]+?) -->\n)?^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.S | re.M
)
SHELL_WORDS = ("lorakeet", "make", "pip", "python", "torchrun", "git", "source", "kill", "cd")
ROWS = "".join(
    json.dumps({"messages": [{"role": "user", "content": f"Order {i}?"}, {"role": "assistant", "content": f"Due {i}."}]}) + "\n"
    for i in range(24)
)


class Block(NamedTuple):
    kind: str
    text: str
    mark: str | None
    note: str | None


def blocks(page):
    found = [
        Block(m["kind"].strip(), m["text"], m["mark"], m["note"]) for m in BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]
    return [one._replace(kind=what_is(one)) for one in found]


def what_is(block):
    """Tell shell blocks, which often have no language, from tables, trees and output."""
    if block.kind in ("sh", "bash", "shell", "console"):
        return "sh"
    first = block.text.split(maxsplit=1)[0] if block.text.strip() else ""
    return "sh" if not block.kind and first in SHELL_WORDS else block.kind


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKEET_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("LORAKEET_COMPILE", "0")
        yield write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def test_there_are_pages_and_blocks():
    kinds = [one.kind for page in PAGES for one in blocks(page)]
    assert kinds.count("sh") > 20
    assert kinds.count("python") > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_a_page_run(page, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.jsonl").write_text(ROWS, encoding="utf-8")
    names = {}
    for block in blocks(page):
        if block.mark == "rows":
            Path(block.note).write_text(block.text.replace("phi3-mini", str(tiny)), encoding="utf-8")
        elif block.mark is None and block.kind == "sh":
            run_shell(block.text, tiny, capsys)
        elif block.mark is None and block.kind == "python":
            exec(compile(with_tiny(block.text, tiny), str(page), "exec"), names)


def run_shell(text, tiny, capsys):
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "lorakeet", f"only lorakeet runs here; mark the block with <!-- not run: why -->: {line}"
        words = [{"phi3-mini": str(tiny), "demo": str(tiny)}.get(word, word) for word in words]
        status = main.run(words[1:])
        assert status == 0, f"{line}\n{capsys.readouterr().err}"


def with_tiny(text, tiny):
    text = text.replace('"demo", "demo"', '"phi3-mini", "chats.jsonl"').replace('"phi3-mini"', repr(str(tiny)))
    return textwrap.dedent(text)
