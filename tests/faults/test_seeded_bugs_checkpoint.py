"""Silent bugs 18, 21, 22, 28 and 29, brought back by a patch at run time: each is caught.

Every test first shows that the unpatched code passes. Bugs that change what a resumed run learns are caught by the
comparison with a run that was never stopped, the same one that the campaign makes for every kill.
"""

import pytest
import torch

from lorakeet.config import LoraConfig, TrainingConfig
from lorakeet.errors import AdapterError, CheckpointError, ConfigError, TrainingError
from lorakeet.files import safetensors_file
from lorakeet.lora import adapter, inject
from lorakeet.lora.adapter import load_adapter, save_adapter
from lorakeet.rundir import checkpoint
from lorakeet.rundir.checkpoint import check_manifest, load_newest, save_checkpoint
from lorakeet.training import loop as trainer
from lorakeet.training.adapted_layers import check_adapted_layers
from lorakeet.training.loop import Trainer
from lorakeet.training.reporting import Reporters

TARGETS = ["qkv_proj", "gate_up_proj"]
SETTINGS = TrainingConfig(
    learning_rate=1e-2, eval_strategy="no", num_train_epochs=2, gradient_accumulation_steps=2, per_device_train_batch_size=3
)


# 18: targets miss


def test_18_a_typo_matches_nothing(make_model):
    with pytest.raises(ConfigError, match=r"E-CFG-42 .*qvk_proj"):
        make_model(target_modules=["qvk_proj"])


def test_18_a_fused_layer_is_missed_in_some_layers(make_model, monkeypatch):
    check_adapted_layers(make_model(target_modules=TARGETS), LoraConfig(target_modules=TARGETS))
    find = inject.find_targets
    monkeypatch.setattr(inject, "find_targets", lambda model, config: find(model, config)[:-1])
    with pytest.raises(TrainingError, match=r"E-TRAIN-18 target_modules mlp\.gate_up_proj is adapted in 1 of 2 layers"):
        check_adapted_layers(make_model(target_modules=TARGETS), LoraConfig(target_modules=TARGETS))


# 21 and 22: keys that match nothing, an adapter that is empty


@pytest.fixture
def saved(make_model, tmp_path):
    save_adapter(make_model(), tmp_path / "adapter", extra={"base_hash": "a" * 64})
    load_adapter(make_model(), tmp_path / "adapter", base_hash="a" * 64)
    return tmp_path / "adapter"


def test_21_keys_written_under_other_names_do_not_load(make_model, saved, monkeypatch):
    monkeypatch.setattr(adapter, "PREFIX", "base_model.model.model.")
    save_adapter(make_model(), saved)
    monkeypatch.undo()
    with pytest.raises(AdapterError, match=r"E-ADPT-66 .*keys missing.*keys too many"):
        load_adapter(make_model(), saved)


def test_21_an_adapter_of_another_base_does_not_load(make_model, saved):
    with pytest.raises(AdapterError, match="E-ADPT-64"):
        load_adapter(make_model(), saved, base_hash="b" * 64)


@pytest.mark.parametrize("emptied", [lambda tensors: {}, lambda tensors: {k: v[:0] for k, v in tensors.items()}])
def test_22_an_empty_adapter_is_not_saved(make_model, saved, monkeypatch, emptied):
    before = (saved / "adapter_model.safetensors").read_bytes()
    gather = adapter._adapter_tensors
    monkeypatch.setattr(adapter, "_adapter_tensors", lambda *given: emptied(gather(*given)))
    with pytest.raises(AdapterError, match=r"E-ADPT-106 .*nothing to save"):
        save_adapter(make_model(), saved)
    assert (saved / "adapter_model.safetensors").read_bytes() == before


def test_22_a_writer_that_loses_tensors_is_noticed(make_model, saved, monkeypatch):
    write = safetensors_file.write_tensors
    monkeypatch.setattr(
        safetensors_file, "write_tensors", lambda file, tensors, note: write(file, dict([*tensors.items()][1:]), note)
    )
    with pytest.raises(AdapterError, match="E-ADPT-110"):
        save_adapter(make_model(), saved)


# 28 and 29: what a resumed run must find again


class Run:
    """A run that stops after three steps, and goes on from its checkpoint."""

    def __init__(self, make_model, examples, directory):
        self.make, self.examples, self.directory = (lambda: make_model(lora_dropout=0.1)), examples, directory

    def trainer(self):
        return Trainer(self.make(), SETTINGS, self.examples)

    def straight(self):
        torch.manual_seed(7)
        done = self.trainer()
        done.run(Reporters(), lambda step: self._save(done) if step == 3 else None)
        return done

    def _save(self, running):
        save_checkpoint(self.directory, running.state(), {}, keep=None)

    def resumed(self):
        going = self.trainer()
        torch.manual_seed(123)
        found = load_newest(self.directory, {}, lambda text: None)
        going.load_state(found[1])
        going.run(Reporters())
        return going


def equal(one, other):
    return all(torch.equal(param, other.named_params[name]) for name, param in one.named_params.items())


@pytest.fixture
def run(make_model, examples, tmp_path):
    run = Run(make_model, examples, tmp_path / "run")
    run.expected = run.straight()
    assert run.expected.total_steps == 8
    assert equal(run.resumed(), run.expected)
    return run


@pytest.mark.parametrize("name", ["moments.safetensors", "params.safetensors", "rng.safetensors", "state.json"])
def test_28_every_part_is_mandatory(run, name):
    path = run.directory / "checkpoints" / "step-000003"
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"E-CKPT-60 {path / name} is missing"):
        check_manifest(path)
    with pytest.raises(CheckpointError, match="E-CKPT-54"):
        run.resumed()


def test_28_an_optimizer_that_is_not_saved_is_noticed(run, monkeypatch):
    take = trainer.take_optimizer
    monkeypatch.setattr(trainer, "take_optimizer", lambda *given: ({}, take(*given)[1]))
    run.straight()
    with pytest.raises(CheckpointError, match="E-CKPT-60"):
        run.resumed()


def test_28_an_optimizer_that_is_ignored_ends_otherwise(run, monkeypatch):
    monkeypatch.setattr(trainer, "give_optimizer", lambda *given: None)
    assert not equal(run.resumed(), run.expected)


def test_28_a_part_that_was_not_written_is_not_taken_for_a_checkpoint(run, monkeypatch):
    write = checkpoint.write_tensors
    monkeypatch.setattr(
        checkpoint, "write_tensors", lambda file, tensors: write(file, {} if "moments" in file.name else tensors)
    )
    with pytest.raises(CheckpointError, match=r"E-CKPT-110 .*moments\.safetensors does not read back"):
        run.straight()


def test_29_rows_that_begin_again_end_otherwise(run, monkeypatch):
    steps = trainer.iterate_steps
    monkeypatch.setattr(trainer, "iterate_steps", lambda units, **given: steps(units, **{**given, "start_step": 0}))
    assert not equal(run.resumed(), run.expected)


def test_29_another_order_of_rows_is_refused(run, monkeypatch):
    order = trainer.epoch_order
    monkeypatch.setattr(trainer, "epoch_order", lambda num, seed, epoch: order(num, seed + 1, epoch))
    with pytest.raises(CheckpointError, match=r"E-CKPT-62 .*its place in the data is"):
        run.resumed()


def test_29_an_epoch_that_is_skipped_is_refused(run, monkeypatch):
    monkeypatch.setattr(trainer, "steps_per_epoch", lambda *given, **options: 2)
    with pytest.raises(CheckpointError, match=r"E-CKPT-62 .*its place in the data is"):
        run.resumed()


def test_29_random_states_that_are_not_restored_end_otherwise(run, monkeypatch):
    monkeypatch.setattr(trainer, "set_random_states", lambda states: None)
    assert not equal(run.resumed(), run.expected)
