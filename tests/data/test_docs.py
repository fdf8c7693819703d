"""Every example of docs/data.md is read, encoded, proven, and looks as the page says."""

import re
from pathlib import Path

import pytest

from lorakeet.checking.report import Shown
from lorakeet.checking.show import example_text
from lorakeet.data.encode import encode
from lorakeet.data.prove import prove
from lorakeet.data.read import read_conversations
from lorakeet.data.templates.template import template_for
from tests.data.conftest import trained

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCK = re.compile(r"```(jsonl|csv)([^\n]*)\n(.*?)```\n\n```text\n(.*?)```", re.S)


def examples():
    return [found.groups() for found in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]


def drawn(kind: str, options: str, rows: str, folder: Path) -> str:
    """Draw the example's rows as the page shows them."""
    mapped: dict = {}
    for option in options.split():
        name, pairs = option.split("=", 1)
        mapped[name] = dict(pair.split("=") for pair in pairs.split(",")) if "=" in pairs else pairs
    path = folder / f"example.{kind}"
    path.write_text(rows, encoding="utf-8")
    tokenizer = trained("bpe")
    template = template_for(tokenizer)
    assert template.name == "phi3-mini"
    texts = []
    for row in read_conversations(path, **mapped):
        example = encode(row, tokenizer, template)
        prove(row, example, tokenizer, template)
        texts.append(example_text(Shown(row, example), tokenizer, colour=False).plain)
    return "\n".join(texts)


def test_page_has_its_examples():
    formats = re.findall(r"^### (\S+)$", PAGE.read_text(encoding="utf-8"), re.M)
    assert {"messages", "sharegpt", "alpaca", "prompt-completion", "text"} <= set(formats)
    assert len(examples()) == 12


@pytest.mark.parametrize("number", range(12))
def test_example_looks_as_the_page_says(number, tmp_path):
    kind, options, rows, text = examples()[number]
    assert drawn(kind, options, rows, tmp_path).strip() == text.strip()
