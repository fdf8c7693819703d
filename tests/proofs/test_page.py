"""What docs/proofs.md names exists: proofs, tests, faults and error codes; and every proof has its row."""

import re
from pathlib import Path

import pytest

from lorakeet.proofs.registry import PROOFS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "proofs.md").read_text(encoding="utf-8")
NAMES = {proof.name for proof in PROOFS}


def table(heading):
    """Return the cells of the rows of the first table below a heading."""
    lines = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


def test_every_proof_has_its_row_and_says_whether_it_is_quick():
    rows = table("What is proven")
    assert [(row[0], row[3] == "yes") for row in rows] == [(proof.name, proof.is_quick) for proof in PROOFS]


@pytest.mark.parametrize("row", table("The field's silent bugs"), ids=lambda row: row[1])
def test_what_finds_a_silent_bug_exists(row):
    errors = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    found = [name.strip() for name in row[2].split(";")]
    assert found
    for name in found:
        if match := re.fullmatch(r"`(tests/\S+\.py)::(\w+)`", name):
            assert f"def {match[2]}(" in (ROOT / match[1]).read_text(encoding="utf-8"), name
        elif re.fullmatch(r"E-[A-Z]+-\d+", name):
            assert f"### {name}\n" in errors, name
        else:
            assert name in NAMES


def test_all_thirty_are_there():
    assert [int(row[0]) for row in table("The field's silent bugs")] == list(range(1, 31))
