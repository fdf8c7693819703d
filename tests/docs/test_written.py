"""What is written from the code is up to date, and the site builds with every page and link."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorakeet.cli import main
from lorakeet.config import TrainingConfig
from tools import agents, model_table, reference

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("file", "write"), [("AGENTS.md", agents.agents_page), ("llms.txt", agents.llms_page)])
def test_pages_for_agents_are_up_to_date(file, write):
    assert (ROOT / file).read_text(encoding="utf-8") == write(), "run: python -m tools.agents"


def test_the_table_of_models_is_up_to_date():
    found = model_table.BLOCK.search(model_table.README.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0].split("\n", 1)[1].startswith(model_table.table()), "run: python -m tools.model_table"


def test_computed_memory_is_near_what_was_measured():
    shape = model_table.SHAPES["phi3-mini"]
    assert shape.num_params == pytest.approx(3.82e9, rel=0.01)
    assert shape.training_bytes(model_table.BYTES_OF_4_BITS) == pytest.approx(4.54e9, rel=0.1)


def test_every_command_and_key_is_explained():
    page = reference.commands_page()
    for command in main.app.registered_commands:
        assert f"## {command.name}\n" in page
    keys = reference.keys_page()
    for section, kind in reference.SECTIONS.items():
        assert f"## {section}\n" in keys
        assert kind.model_fields.keys() - reference.field_docs(kind).keys() == set(), "a key without a text below it"
    assert f"| `{next(iter(TrainingConfig.model_fields))}` |" in keys


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_without_a_broken_link_and_asks_for_nothing_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:link|script|img|iframe)[^>]*?(?:href|src)=[\"']?(https?://[^\"' >]+)", text)
        assert loaded == [], page
    assert (site / "llms.txt").is_file()


def test_drawings_follow_the_page_and_have_names():
    drawings = [svg for page in (ROOT / "docs").rglob("*.md") for svg in re.findall(r"<svg.*?</svg>", page.read_text(), re.S)]
    assert len(drawings) >= 4
    for svg in drawings:
        assert "currentColor" in svg
        assert "<title" in svg
        assert not re.search(r"#[0-9a-fA-F]{3,6}\b", svg.replace('"url(#tip)"', "")), "a fixed colour does not follow the page"
