"""Every proof passes on sound code, and each has a fault that it finds and no other quick proof does."""

import pytest

from lorakeet.proofs.proof import check
from lorakeet.proofs.registry import PROOFS, chosen
from lorakeet.proofs.verify import prove
from tests.proofs.faults import FAULTS


def test_sound_code_passes_every_proof(subject):
    results = prove(subject(), quick=False)
    assert [result.name for result in results if result.passed is None] == ["compiled = eager"], "no compiler in these tests"
    assert [(result.name, result.error, result.tolerance, result.fix) for result in results if result.passed is False] == []
    assert all(result.tolerance == 0 or 1e-8 < result.tolerance < 1e-3 for result in results if result.passed)


def test_every_proof_has_its_fault():
    assert [proof.name for proof in PROOFS] == list(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_its_proof_and_by_no_other_quick_one(subject, monkeypatch, name):
    (its_proof,) = (proof for proof in PROOFS if proof.name == name)
    FAULTS[name](monkeypatch)
    found = subject()
    results = {
        proof.name: check(proof, found)
        for proof in {its_proof.name: its_proof, **{p.name: p for p in chosen(quick=True)}}.values()
    }
    assert {result.name: result.fix for result in results.values() if result.passed is False}.keys() == {name}
    assert name == "rows = prompts" or "it ended with" not in results[name].fix, "found by a difference, not by a crash"
