"""Checkpoints: what is written is what is read, and damage is found and named."""

import os
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from lorakeet.errors import CheckpointError, ConfigError, DataError, TrainingError
from lorakeet.rundir import checkpoint
from lorakeet.rundir.checkpoint import Counts, TrainerState, check_manifest, checkpoints, load_newest, lock, save_checkpoint
from lorakeet.training.rng import get_rng_states

IDENTITY = {"data": "d1", "base model": "b1", "training_config.seed": "1"}


def counts_at(step):
    return Counts(
        step=step,
        num_tokens=9,
        num_supervised_tokens=4,
        elapsed_s=1.5,
        is_evaluated=False,
        window=[0.0, 0, 0, 0.0],
        cursor={"epoch": 0},
        best={"best_step": 0},
        num_processes=1,
    )


def state(step):
    params = {"a.lora_A": torch.full((2, 3), float(step)), "a.lora_B": torch.ones(3, 2)}
    moments = {f"{kind}.{name}": value * 2 for name, value in params.items() for kind in ("exp_avg", "exp_avg_sq", "step")}
    counts, optimizer = counts_at(step), {"groups": [{"lr": 0.5}]}
    return TrainerState(params, moments, get_rng_states(), counts, optimizer)


def save(run, *steps, keep=2):
    for step in steps:
        path = save_checkpoint(run, state(step), IDENTITY, keep)
    return path


def newest(run, identity=IDENTITY):
    notes = []
    return load_newest(run, identity, notes.append), notes


def test_a_checkpoint_roundtrips(tmp_path):
    path = save(tmp_path, 5)
    assert path.name == "step-000005"
    (found, loaded), notes = newest(tmp_path)
    assert (found, notes) == (path, [])
    assert asdict(loaded.counts) == asdict(counts_at(5))
    assert loaded.optimizer == {"groups": [{"lr": 0.5}]}
    for group in ("params", "moments"):
        expected = getattr(state(5), group)
        assert getattr(loaded, group).keys() == expected.keys()
        assert all(torch.equal(getattr(loaded, group)[key], value) for key, value in expected.items())


def test_the_newest_ones_are_kept_and_never_fewer_than_two(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=3)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000004", "step-000003", "step-000002"]
    save(tmp_path, 5, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000005", "step-000004"]


def test_no_hidden_folder_is_left_behind(tmp_path):
    save(tmp_path, 1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000001"]


@pytest.mark.parametrize("name", ["params.safetensors", "moments.safetensors", "rng.safetensors", "state.json"])
@pytest.mark.parametrize(("damage", "code"), [("flip", 57), ("cut", 56), ("empty", 55), ("delete", 60)])
def test_damage_is_named_and_the_one_before_is_used(tmp_path, name, damage, code):
    before, path = save(tmp_path, 1), save(tmp_path, 2)
    file = path / name
    content = bytearray(file.read_bytes())
    if damage == "delete":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes({"flip": content, "cut": content[:-1], "empty": b""}[damage])
    (found, loaded), notes = newest(tmp_path)
    assert found == before
    assert loaded.counts.step == 1
    assert len(notes) == 1
    assert f"E-CKPT-{code} {file}" in notes[0]


def test_a_checkpoint_without_manifest_is_skipped(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").unlink()
    (found, _), notes = newest(tmp_path)
    assert found.name == "step-000001"
    assert "E-CKPT-53" in notes[0]


def test_where_none_is_valid_nothing_begins_again_by_itself(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "params.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"E-CKPT-54 .*none of its 2 checkpoints is valid\. .*--restart"):
        newest(tmp_path)


def test_a_run_without_checkpoints_has_none_to_load(tmp_path):
    assert newest(tmp_path) == (None, [])


def test_another_identity_is_refused_listing_the_fields(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"E-CKPT-62 .*another peft\.r \(8, was None\), .*seed \(2, was 1\)"):
        newest(tmp_path, {**IDENTITY, "peft.r": "8", "training_config.seed": "2"})


def test_another_base_is_refused_with_both_hashes(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"E-CKPT-64 .*belongs to the base model b1, not to b2"):
        newest(tmp_path, {**IDENTITY, "base model": "b2"})


def test_data_changed_since_is_refused(tmp_path):
    path = save(tmp_path, 1)
    with pytest.raises(DataError, match=rf"E-DATA-30 {path} the training data changed since: its hash is d2, was d1"):
        newest(tmp_path, {**IDENTITY, "data": "d2"})


def test_a_newer_format_asks_for_an_upgrade_instead_of_going_back(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    save(tmp_path, 2)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"E-CKPT-61 .*step-000002 has format 99.*Upgrade"):
        newest(tmp_path)


def test_damage_to_the_manifest_itself_is_found(tmp_path):
    file = save(tmp_path, 1) / "manifest.json"
    content = file.read_bytes()
    for place in range(0, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match=rf"E-CKPT-5[37] {file}"):
            check_manifest(file.parent)


def test_a_renamed_checkpoint_is_not_taken_for_another(tmp_path):
    path = save(tmp_path, 1)
    path.rename(path.with_name("step-000009"))
    with pytest.raises(CheckpointError, match=r"E-CKPT-57 .*step-000009 is of step 1"):
        check_manifest(path.with_name("step-000009"))


def test_damaged_newer_ones_do_not_push_out_what_is_written_after_them(tmp_path):
    for step in (1, 3, 4):
        save(tmp_path, step, keep=9)
    for step in (3, 4):
        (tmp_path / f"checkpoints/step-00000{step}/params.safetensors").write_bytes(b"")
    (found, _), notes = newest(tmp_path)
    assert found.name == "step-000001"
    assert len(notes) == 2
    save(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000002", "step-000001"]


def test_the_best_one_stays(tmp_path):
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, state(step), IDENTITY, 2, best_step=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000004", "step-000003", "step-000001"]


def test_nothing_that_is_not_finite_is_saved(tmp_path):
    for group, name in (("params", "a.lora_B"), ("moments", "exp_avg.a.lora_A")):
        spoiled = state(1)
        getattr(spoiled, group)[name].view(-1)[1] = float("nan")
        with pytest.raises(TrainingError, match=f"E-TRAIN-15 step 1 {name} holds NaN"):
            save_checkpoint(tmp_path, spoiled, IDENTITY, 2)
    assert checkpoints(tmp_path) == []


def test_a_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    before = save(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(ConfigError, match=r"E-CFG-47 .*need [0-9,]+ bytes, have 10"):
        save(tmp_path, 2)
    assert list((tmp_path / "checkpoints").iterdir()) == [before]


def test_what_a_killed_writer_left_goes_when_the_run_is_held_again(tmp_path):
    path = save(tmp_path, 1)
    for name in (".step-000002.part", ".step-000000.old.part"):
        (path.parent / name).mkdir()
        (path.parent / name / "params.safetensors").write_bytes(b"x")
    (tmp_path / ".config.yaml.1f.part").write_text("x")
    with lock(tmp_path):
        assert list(path.parent.iterdir()) == [path]
        assert not list(tmp_path.glob("*.part"))


def test_another_version_is_noted(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(torch, "__version__", "9.9")
    _, notes = newest(tmp_path)
    assert len(notes) == 1
    assert "is now 9.9. The run goes on" in notes[0]


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lorakeet.rundir.checkpoint import lock\nwith lock(Path(sys.argv[1])): pass"
    )
    with lock(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert f"E-CFG-50 {tmp_path} locked by process {os.getpid()}" in done.stderr
    with lock(tmp_path):  # free again
        pass


def test_the_lock_of_this_process_is_exclusive_too(tmp_path):
    with lock(tmp_path), pytest.raises(ConfigError, match="E-CFG-50"), lock(tmp_path):
        pass
