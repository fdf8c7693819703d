"""Silent bugs of evaluation and of broken numbers, put back at run time: each one is caught.

Row 15 NaN saved as success, row 25 dropout on in evaluation, row 26 a held-out loss that depends on the batch.
Each test shows the same check passing without the bug.
"""

import contextlib
import dataclasses

import pytest
import torch

from lorakeet.config import TrainingConfig
from lorakeet.errors import AdapterError, TrainingError
from lorakeet.evaluation import perplexity
from lorakeet.lora.adapter import save_adapter
from lorakeet.rundir.checkpoint import checkpoints, load_newest, save_checkpoint
from lorakeet.training import loop as trainer
from lorakeet.training.reporting import Reporters
from tests.training import conftest as tiny

make_model, examples = tiny.make_model, tiny.examples

NAN = float("nan")
IDENTITY = {"data": "d"}


def train(model, examples, run, before_step=None):
    """Train four steps with a checkpoint behind each, then save the adapter, as a run does."""
    settings = TrainingConfig(max_steps=4, per_device_train_batch_size=6, eval_strategy="no", warmup_ratio=0)
    loop = trainer.Trainer(model, settings, examples)

    def after_step(step):
        save_checkpoint(run, loop.state(), IDENTITY, keep=9)
        if step == 2 and before_step is not None:
            before_step(loop)

    loop.run(Reporters(), after_step)
    save_adapter(model, run / "adapter")


def in_the_base(loop):
    with torch.no_grad():
        loop.model.model.layers[0].mlp.down_proj.weight[0, 0] = NAN


def in_the_gradient(loop):
    next(iter(loop.named_params.values())).register_hook(lambda grad: grad * NAN)


def in_an_adapter(loop):
    with torch.no_grad():
        next(iter(loop.named_params.values()))[0, 0] = NAN


def in_the_update(loop):
    """Break a weight in the optimizer's step, behind every look at loss and gradient."""
    step = loop.optimizer.step

    def broken(*args, **kwargs):
        step(*args, **kwargs)
        in_an_adapter(loop)

    loop.optimizer.step = broken


PLACES = [in_the_base, in_the_gradient, in_an_adapter, in_the_update]


@pytest.mark.parametrize("inject", PLACES)
def test_row_15_nan_stops_and_is_never_saved(inject, make_model, examples, tmp_path):
    with pytest.raises(TrainingError, match="E-TRAIN-15 step 3 "):
        train(make_model(), examples, tmp_path, inject)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000002", "step-000001"]
    _, state = load_newest(tmp_path, IDENTITY, pytest.fail)
    assert all(torch.isfinite(tensor).all() for tensor in [*state.params.values(), *state.moments.values()])
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("inject", PLACES)
def test_row_15_with_the_bug_the_checkpoint_refuses(inject, make_model, examples, tmp_path, monkeypatch):
    # The bug: nobody looks at loss, gradient or weights while training.
    monkeypatch.setattr(trainer.math, "isfinite", lambda value: True)
    monkeypatch.setattr(trainer, "check_weights", lambda *args: None)
    with pytest.raises(TrainingError, match=r"E-TRAIN-15 step 3 .* holds NaN or infinity, and is not saved"):
        train(make_model(), examples, tmp_path, inject)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000002", "step-000001"]


def test_row_15_with_the_bug_the_adapter_is_refused_too(make_model, tmp_path):
    model = make_model()
    with torch.no_grad():
        next(param for param in model.parameters() if param.requires_grad)[0, 0] = NAN
    with pytest.raises(AdapterError, match="E-ADPT-68"):
        save_adapter(model, tmp_path / "adapter")


def test_row_15_an_optimizer_state_that_is_not_finite_is_never_saved(make_model, examples, tmp_path):
    def in_a_moment(loop):
        state = next(iter(loop.optimizer.state.values()))
        state["exp_avg_sq"].fill_(float("inf"))  # an update of 0: the weights stay finite, and learn no more

    with pytest.raises(TrainingError, match=r"E-TRAIN-15 step 3 .*exp_avg_sq holds NaN or infinity"):
        train(make_model(), examples, tmp_path, in_a_moment)


def test_row_15_a_held_out_loss_that_is_not_finite_stops(make_model, examples):
    settings = TrainingConfig(max_steps=2, eval_strategy="steps", eval_steps=1)
    model = make_model()
    loop = trainer.Trainer(model, settings, examples, examples[:4])
    in_the_base(loop)
    with pytest.raises(TrainingError, match="E-TRAIN-15 step 0 the held-out loss is nan"):
        loop.run(Reporters())


def two_forwards(model, examples):
    """Row 25's test: two evaluations are one number, to the bit."""
    return [perplexity.evaluate_loss(model, examples).loss for _ in range(2)]


def lively(make_model):
    """Build a model whose adapters say something, so that dropout on them would be heard; in training mode."""
    model = make_model(lora_dropout=0.5)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
    return model.train()


def test_row_25_dropout_on_in_evaluation(make_model, examples, monkeypatch):
    model = lively(make_model)
    first, second = two_forwards(model, examples)
    assert first == second
    # The bug: evaluation forgets to leave training mode.
    monkeypatch.setattr(perplexity, "evaluating", lambda model: contextlib.nullcontext())
    first, second = two_forwards(model, examples)
    assert first != second


def test_row_25_a_module_that_stays_in_training_mode_is_caught(make_model, examples, monkeypatch):
    model = lively(make_model)
    dropout = next(module for module in model.modules() if isinstance(module, torch.nn.Dropout))
    # The bug: a module of somebody's that does not hear of eval().
    monkeypatch.setattr(dropout, "train", lambda mode=True: dropout)
    with pytest.raises(AssertionError, match="stayed in training mode"):
        perplexity.evaluate_loss(model, examples)


def losses_by_batch(model, examples):
    """Row 26's test: one row at a time, or eight."""
    return [perplexity.evaluate_loss(model, examples, batch_size=size).loss for size in (1, 8)]


def test_row_26_the_held_out_loss_depends_on_the_batch(make_model, examples, monkeypatch):
    model = lively(make_model)
    assert len({example.num_supervised_tokens for example in examples}) > 3
    alone, together = losses_by_batch(model, examples)
    assert alone == pytest.approx(together, rel=1e-6)
    # The bug: the mean of the batches' means.
    loss, pack = perplexity.packed_loss, perplexity.pack_for

    def counted_as_one(model, examples):
        return dataclasses.replace(pack(model, examples), num_supervised_tokens=1)

    def mean_loss(model, batch):
        return loss(model, batch) / len(batch.targets_S)

    monkeypatch.setattr(perplexity, "packed_loss", mean_loss)
    monkeypatch.setattr(perplexity, "pack_for", counted_as_one)
    alone, together = losses_by_batch(model, examples)
    assert alone != pytest.approx(together, rel=1e-5)
