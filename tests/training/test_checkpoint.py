"""Checkpoints: what is written is what is read, and damage is found and named."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lorakeet.errors import CheckpointError, ConfigError, DataError
from lorakeet.training.checkpoint import TrainerState, check_manifest, checkpoints, load_newest, lock, save_checkpoint

IDENTITY = {"data": "d1", "base model": "b1", "training_config.seed": "1"}


def state(step):
    params = {"a.lora_A": torch.full((2, 3), float(step)), "a.lora_B": torch.ones(3, 2)}
    moments = {
        f"{kind}.{name}": value * 2 for name, value in params.items() for kind in ("exp_avg", "exp_avg_sq", "step")
    }
    return TrainerState(
        params, moments, {"cpu": torch.get_rng_state()}, {"step": step, "num_tokens": 9}, {"groups": [{"lr": 0.5}]}
    )


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
    assert loaded.counts == {"step": 5, "num_tokens": 9}
    assert loaded.optimizer == {"groups": [{"lr": 0.5}]}
    for group in ("params", "moments", "rng"):
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
    assert loaded.counts["step"] == 1
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
    with pytest.raises(CheckpointError, match=r"E-CKPT-62 .*another base model, training_config\.seed"):
        newest(tmp_path, {**IDENTITY, "base model": "b2", "training_config.seed": "2"})


def test_data_changed_since_is_refused(tmp_path):
    path = save(tmp_path, 1)
    with pytest.raises(DataError, match=rf"E-DATA-30 {path} the training data changed since: its hash is d2, was d1"):
        newest(tmp_path, {**IDENTITY, "data": "d2"})


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match=r"E-CKPT-61 .*has format 99.*Upgrade"):
        check_manifest(path)


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lorakeet.training.checkpoint import lock\n"
        "with lock(Path(sys.argv[1])): pass"
    )
    with lock(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert f"E-CFG-50 {tmp_path} locked by process {os.getpid()}" in done.stderr
    with lock(tmp_path):  # free again
        pass


def test_the_lock_of_this_process_is_exclusive_too(tmp_path):
    with lock(tmp_path), pytest.raises(ConfigError, match="E-CFG-50"), lock(tmp_path):
        pass
