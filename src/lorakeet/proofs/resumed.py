"""A run that is cut off and resumed ends as if it had never stopped."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lorakeet.proofs.passes import largest_difference, trained
from lorakeet.proofs.proof import TO_THE_BIT, Measured, Proof
from lorakeet.proofs.subject import Subject, cut
from lorakeet.rundir import checkpoint
from lorakeet.rundir.metrics_file import JsonlReporter
from lorakeet.training.loop import Saver, Trainer
from lorakeet.training.reporting import Reporters
from lorakeet.training.rng import get_rng_states, set_rng_states

STEPS, SAVE_EVERY, CUT_OFF = 20, 10, 13
TOKENS = 32
_IDENTITY = {"proof": "resumed"}


class _CutOffError(Exception):
    """Ends a run in the middle, as a kill would: nothing is saved."""


def resumed_is_never_stopped(subject: Subject) -> Measured:
    """Train 20 steps at a stretch; then cut off after 13, drop everything in memory, and go on from the checkpoint of 10."""
    model, folder = subject.model, subject.scratch / "resumed"
    start = {name: parameter.detach().clone() for name, parameter in trained(model).items()}
    random_states = get_rng_states()
    try:
        straight = _final(_train(subject, start))
        with suppress(_CutOffError):
            _train(subject, start, folder, cut_off=CUT_OFF)
        resumed = _final(_train(subject, start, folder))
    finally:
        _put(model, start)
        model.eval()
        set_rng_states(random_states)
    differ = [name for name, tensor in straight.items() if largest_difference(resumed[name], tensor) != 0]
    return Measured(float(len(differ)), 0.0, TO_THE_BIT, note=f"{len(differ)} of {len(straight)} parameters and moments differ")


def _train(subject: Subject, start: Mapping[str, Tensor], folder: Path | None = None, cut_off: int | None = None) -> Trainer:
    """Train from the newest checkpoint in `folder`, or from the start, in a Trainer of its own."""
    _put(subject.model, start)
    settings = subject.config.training_config.model_copy(
        update={
            "max_steps": STEPS,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "packing": False,
            "eval_strategy": "no",
            "save_steps": SAVE_EVERY,
            "early_stopping_patience": None,
            "load_best_model_at_end": False,
        }
    )
    trainer = Trainer(subject.model, settings, [cut(example, TOKENS) for example in subject.examples])
    if folder is None:
        trainer.run(Reporters())
    else:
        folder.mkdir(exist_ok=True)
        found = checkpoint.load_newest(folder, _IDENTITY, note=lambda _: None)
        if found is not None:
            trainer.load_state(found[1])
        metrics = JsonlReporter(folder / "metrics.jsonl", trainer.step)
        with Reporters(metrics) as reporters:
            trainer.run(reporters, partial(_cut_off, cut_off), saver=Saver(folder, _IDENTITY, metrics, keep=2))
    return trainer


def _cut_off(last: int | None, step: int) -> None:
    if step == last:
        raise _CutOffError


def _final(trainer: Trainer) -> dict[str, Tensor]:
    state = trainer.state()
    return {name: tensor.clone() for name, tensor in (*state.params.items(), *state.moments.items())}


def _put(model: torch.nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in trained(model).items():
            parameter.copy_(values[name])


PROOF = Proof(
    name="resumed = never stopped",
    compares="All parameters and moments after 20 steps, at a stretch and cut off in the middle and resumed from disk.",
    fix="Do not resume runs here; check the disk with lorakeet doctor, and report it",
    measure=resumed_is_never_stopped,
)
