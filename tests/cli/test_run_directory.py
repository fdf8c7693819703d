"""What a run directory protects: nothing is lost, mixed up or begun again without being asked."""

import json
import os
import shutil

import pytest

from lorakeet.cli import main
from lorakeet.rundir.checkpoint import lock
from tests.cli.conftest import write_tiny_model


@pytest.fixture
def rows(tmp_path):
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i} plus 1?", "answer": str(i + 1)}) + "\n" for i in range(30)))
    return data


@pytest.fixture
def train(tiny_model_directory, tmp_path, rows, capsys):
    """Run `lorakeet train` in tmp_path/run; give the exit status and what it said."""

    def train(*more, model=tiny_model_directory):
        sets = ["--set", "training_config.save_steps=1", "--set", "training_config.logging_steps=1"]
        arguments = ["train", str(model), str(rows), "-o", str(tmp_path / "run"), "--max-steps", "3", "--r", "2"]
        status = main.run([*arguments, *sets, *more])
        return status, capsys.readouterr().err

    return train


@pytest.fixture
def finished(train, tmp_path):
    assert train()[0] == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--seed", "7"], "training_config.seed (7, was 42)"),
        (["--lr", "1e-3"], "training_config.learning_rate (0.001, was 0.0002)"),
        (["--batch-size", "2"], "per_device_train_batch_size × gradient_accumulation_steps × processes (2, was 8)"),
        (["--set", "training_config.bf16=false"], "dtype (torch.float32, was torch.bfloat16)"),
    ],
)
def test_62_a_changed_run_is_refused_listing_the_fields(train, finished, change, said):
    fixed = [] if "bf16" in change[-1] else ["--set", "training_config.bf16=true"]
    shutil.rmtree(finished)
    assert train("--set", "training_config.bf16=true")[0] == 0
    status, error = train("--resume", *fixed, *change)
    assert status == 2
    # Seed and batch may choose other held-out rows or steps too; what counts is that the field is named.
    assert "E-CKPT-62" in error or "E-DATA-30" in error
    assert said in error or "E-DATA-30" in error


def test_30_changed_data_is_refused_with_both_hashes(train, finished, rows):
    rows.write_text(rows.read_text().replace("3 plus", "3 and"))
    status, error = train("--resume")
    assert status == 2
    assert "E-DATA-30" in error
    assert "its hash is" in error


def test_64_another_base_is_refused_with_both_hashes(train, finished, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    other = write_tiny_model(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += torch.tensor(0.5)
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    status, error = train("--resume", model=other)
    assert status == 2
    assert "E-CKPT-64" in error
    assert "belongs to the base model" in error


def test_54_where_no_checkpoint_is_valid_only_restart_begins_again(train, finished):
    before = sorted(path.name for path in (finished / "checkpoints").iterdir())
    for path in (finished / "checkpoints").iterdir():
        (path / "params.safetensors").write_bytes(b"")
    status, error = train("--resume")
    assert status == 2
    assert "E-CKPT-54" in error
    assert "--restart" in error
    assert train("--restart")[0] == 0
    assert sorted(path.name for path in (finished / "old-1" / "checkpoints").iterdir()) == before


def test_restart_moves_everything_aside_and_deletes_nothing(train, finished):
    (finished / "notes.txt").write_text("mine")
    kept = {name: (finished / name).read_bytes() for name in ("metrics.jsonl", "config.yaml", "notes.txt")}
    adapter = (finished / "adapter" / "adapter_model.safetensors").read_bytes()
    assert train("--restart")[0] == 0
    assert train("--restart")[0] == 0
    assert (finished / "notes.txt").read_bytes() == kept.pop("notes.txt")
    for name, content in kept.items():
        assert (finished / "old-1" / name).read_bytes() == content
    assert (finished / "old-1" / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert (finished / "old-2" / "checkpoints").is_dir()
    assert len((finished / "metrics.jsonl").read_text().splitlines()) == len(kept["metrics.jsonl"].splitlines())


def test_48_a_run_is_not_begun_again_without_being_asked(train, finished):
    status, error = train()
    assert status == 2
    assert "E-CFG-48" in error


def test_50_a_second_process_is_told_who_has_the_run(train, tmp_path):
    with lock(tmp_path / "run"):
        status, error = train()
    assert status == 2
    assert f"E-CFG-50 {tmp_path / 'run'} locked by process {os.getpid()}" in error


def test_47_a_full_disk_is_seen_before_anything_is_written(train, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    status, error = train()
    assert status == 2
    assert "E-CFG-47" in error
    assert "bytes, have 10" in error
    assert not (tmp_path / "run").exists()


def test_a_finished_run_resumes_into_the_same_adapter(train, finished):
    before = (finished / "adapter" / "adapter_model.safetensors").read_bytes()
    metrics = (finished / "metrics.jsonl").read_bytes()
    assert train("--resume")[0] == 0
    assert (finished / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert (finished / "metrics.jsonl").read_bytes() == metrics
