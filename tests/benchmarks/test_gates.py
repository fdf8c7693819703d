"""The gates let a right system through, and each catches the fault it is there for."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import gates, throughput
from benchmarks.gates import check_gates, gate_rows
from benchmarks.system import TARGETS
from tests.compiler import uncompiled

# PEFT asks transformers for a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(autouse=True)
def plain_python():
    with uncompiled():
        yield


@pytest.fixture
def check(phi3_directory, rows):
    """Check all gates; tell which fail."""

    def run(targets="all-linear"):
        outcome = check_gates(phi3_directory, rows, 4, TARGETS[targets])
        assert len({gate.name for gate in outcome}) == len(outcome) == 8
        return [gate.name for gate in outcome if not gate.holds]

    return run


@pytest.mark.parametrize("targets", ["all-linear", "attention"])
def test_a_right_system_passes(check, targets):
    assert check(targets) == []


def test_a_wrong_loss_is_caught(check, monkeypatch):
    right = gates.train_step
    monkeypatch.setattr(gates, "train_step", lambda *args: replace(right(*args), loss=right(*args).loss * 1.001))
    assert "fp32: step losses against PEFT's, relative" in check()


def test_a_wrong_gradient_is_caught(check, monkeypatch):
    right = gates.pack_for

    def pack_first_row_only(model, rows):
        return right(model, rows[:1])

    monkeypatch.setattr(gates, "pack_for", pack_first_row_only)
    assert "fp32: cosine of the gradient with PEFT's" in check()


def test_a_leak_is_caught(check, monkeypatch):
    right = gates.pack

    def one_document(rows, **options):
        batch = right(rows)
        whole = torch.tensor([0, len(batch.input_ids_T)], dtype=torch.int32)
        return replace(batch, cu_seqlens=whole, parents=torch.tensor([-1, -1], dtype=torch.int32))

    monkeypatch.setattr(gates, "pack", one_document)
    assert {name.split(": ")[1] for name in check()} >= {"losses and gradients that another document's change reaches"}


def test_a_worse_rounding_is_caught(check, monkeypatch):
    right = gates._token_losses

    def rounded(*args, **options):
        return right(*args, **options).bfloat16().float()

    monkeypatch.setattr(gates, "_token_losses", rounded)
    assert "bf16: token losses' distance from fp32, rms" in check()


def test_long_rows_are_cut_to_a_budget_and_keep_learned_tokens(rows):
    long = [replace(row, input_ids=[5] * 4096, spans=((512, 4096),)) for row in rows]
    cut = gate_rows(long)
    assert sum(len(row.input_ids) for row in cut) <= gates.TOKEN_BUDGET
    assert all(row.num_supervised_tokens > 0 for row in cut)
    assert len(cut) > 1
    assert gate_rows(rows) == rows


def test_a_failed_gate_ends_the_bench_with_status_1_and_no_table(phi3_directory, tmp_path, monkeypatch, capsys):
    """The gate's own process fails here, on a model that it cannot read."""
    monkeypatch.setattr(throughput, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(throughput.workloads, "write_rows", lambda name, steps, model, file: file.write_text("[]"))
    monkeypatch.setattr(throughput, "estimate_seconds", lambda *args: 0.0)
    verdict = {"rows": "4 rows", "gates": [{"name": "gradient norm", "value": 0.0, "limit": "> 0", "holds": False}]}
    outcome = type("Done", (), {"stdout": json.dumps(verdict), "stderr": "", "returncode": 1})
    monkeypatch.setattr(throughput.subprocess, "run", lambda *args, **options: outcome)
    monkeypatch.setattr(sys, "argv", ["throughput", "--workloads", "W1", "--model", str(phi3_directory)])
    with pytest.raises(SystemExit, match=r"A gate failed; no figure counts\."):
        throughput.main()
    assert "FAILS  gradient norm: 0 (> 0)" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
