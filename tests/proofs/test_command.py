"""`lorakeet verify`: a table that fits, JSON, exit status, and a run that keeps what was found."""

import json

import pytest

from lorakeet.cli import main
from lorakeet.proofs.proof import NotChecked, Proof, ProofResult, check
from lorakeet.proofs.registry import chosen
from lorakeet.proofs.verify import Verification
from lorakeet.reports.run_report import report_html


@pytest.fixture
def at_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_a_run_is_proven_as_it_was_trained_and_keeps_what_was_found(at_80_columns, model_directory, rows, tmp_path, capsys):
    run = tmp_path / "run"
    settings = ["--set", "training_config.bf16=false", "--set", "peft_config.r=3", "--max-steps", "2"]
    assert main.run(["train", str(model_directory), str(rows), "-o", str(run), *settings]) == 0
    capsys.readouterr()
    assert main.run(["verify", str(run), "--quick"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert f"{len(chosen(quick=True))} of {len(chosen(quick=True))} quick proofs passed" in out
    kept = json.loads((run / "proofs.json").read_text())
    assert [proof["name"] for proof in kept["proofs"]] == [proof.name for proof in chosen(quick=True)]
    assert kept["passed"]
    assert "packed = separate" in report_html([run])


def test_a_proof_that_fails_is_exit_status_2_and_says_what_to_do(at_80_columns, monkeypatch, capsys):
    from lorakeet import api

    about = {"model": "demo", "layers": "all 2", "dtype": "float32", "device": "cpu", "rows": 5, "data": "demo"}
    failed = ProofResult("packed = separate", "Rows together and apart.", 0.5, 1e-6, "", False, "at x. Do not train here", 1.0)
    skipped = ProofResult("ours = PEFT", "Here and there.", None, None, "", None, "Install it: pip install peft", 0.0)
    found = Verification(about, [failed, skipped], quick=False, seconds=3.0)
    monkeypatch.setattr(api, "verify", lambda *_, **__: found)
    assert main.run(["verify"]) == 2
    out = capsys.readouterr().out
    assert "0 of 1 proofs passed in 3 s." in out
    assert "✗ packed = separate: Rows together and apart. at x. Do not train here." in " ".join(out.split())
    assert "– ours = PEFT: Install it: pip install peft" in out
    assert main.run(["verify", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["proofs"][0]["error"] == 0.5


def test_a_proof_that_cannot_be_computed_fails_and_one_without_a_library_is_not_checked():
    def broken(_):
        raise KeyError("lora_A")

    result = check(Proof("a", "b", "Report it", broken), None)
    assert result.passed is False
    assert result.fix == "it ended with KeyError: 'lora_A'. Report it"
    assert result.to_dict()["error"] == "inf"
    assert check(Proof("a", "b", "", lambda _: NotChecked("Install it: pip install peft")), None).passed is None
