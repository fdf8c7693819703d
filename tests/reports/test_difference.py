"""`lorakeet diff` names what differs, and nothing else."""

import json
import shutil

import pytest

from lorakeet.cli import main
from lorakeet.reports.difference import compare_runs, describe
from lorakeet.reports.reported_run import read_run
from tests.reports.conftest import write_run


@pytest.fixture
def runs(tmp_path):
    first = write_run(tmp_path / "first")
    return first, shutil.copytree(first, tmp_path / "second")


def changed_rows(run, change):
    path = run / "metrics.jsonl"
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_equal_runs_differ_in_nothing(runs):
    found = compare_runs(*map(read_run, runs))
    assert found.is_none
    assert describe(found, ("first", "second")) == [
        "Loss, gradient norm and tokens are equal to the bit at 200 steps that both have logged."
    ]


def test_times_and_memory_do_not_count(runs):
    changed_rows(runs[1], lambda row: row | {"tokens_per_second": 1, "elapsed_s": 2, "peak_memory_bytes": 3})
    assert compare_runs(*map(read_run, runs)).is_none


def test_keys_and_the_step_where_numbers_part_are_named(runs, capsys):
    config = runs[1] / "config.yaml"
    config.write_text(config.read_text().replace("seed: 42", "seed: 43"))
    changed_rows(runs[1], lambda row: row | {"grad_norm": 9.0} if row["step"] >= 17 else row)
    assert main.run(["diff", *map(str, runs)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "training_config.seed: 42 in first, 43 in second"
    assert "The numbers part at step 17: grad norm " in out
    assert main.run(["diff", *map(str, runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"] == [["training_config.seed", ["42", "43"]]]
    assert found["parting"][:2] == [17, "grad_norm"]


@pytest.mark.parametrize(("section", "expected"), [("identity", "data differs"), ("versions", "versions.torch: 1, then 2")])
def test_data_and_versions_are_compared(runs, section, expected):
    for run, value in zip(runs, "12", strict=True):
        checkpoint = run / "checkpoints" / "step-000200"
        checkpoint.mkdir(parents=True)
        manifest = {"identity": {"data": "a"}, "versions": {"torch": "1"}}
        manifest[section] = {"data" if section == "identity" else "torch": value}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert expected in describe(compare_runs(*map(read_run, runs)), ("first", "second"))


def test_no_run_is_named(tmp_path, runs, capsys):
    assert main.run(["diff", str(runs[0]), str(tmp_path / "none")]) == 2
    assert "E-CKPT-100" in capsys.readouterr().err
