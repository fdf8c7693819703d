"""What each process of a shared run does: train the tiny model case by case, and write down what came out.

Started by torchrun: `rank.py PLAN.json`. The plan is {"out": DIR, "cases": {name: {...}}}; see `train_case`.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lorakeet import dist
from lorakeet.config import TrainingConfig
from lorakeet.rundir import checkpoint
from lorakeet.rundir.row_ledger import RowLedger
from lorakeet.training import parallel
from lorakeet.training.loop import Trainer
from lorakeet.training.reporting import Reporters
from tests.training.tiny import build_model, ragged_rows

DEVICE = "cuda" if os.environ.get("LORAKEET_TEST_CUDA") else "cpu"


class Recorder:
    """Keeps the logged rows."""

    def __init__(self):
        self.rows = []

    def step(self, row):
        """Keep nothing of single steps."""

    def log(self, row):
        """Keep the row."""
        self.rows.append(row.to_dict())

    def close(self):
        """Do nothing."""


def train_case(out, *, settings, lora=None, fsdp=False, held_out=0, rows=24, resume=None, stop_at=None):
    """Train and write params, gradients of the last step, moments and logged rows under `out`; returns the trainer.

    resume: a run directory to go on from; stop_at: end after this step and write a checkpoint into `out`.
    """
    model = build_model(**(lora or {})).to(DEVICE)
    if fsdp:
        parallel.shard_base(model)
    model.compile_layers()  # only where LORAKEET_COMPILE is not 0, as it is in the tests
    examples = ragged_rows()
    Path(f"{out}.ledger").mkdir(exist_ok=True)
    # AdamW divides by a gradient's size: one that is zero but for rounding would move by the full rate.
    values = {
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-4,
        "logging_steps": 1,
        "eval_strategy": "no",
        "max_grad_norm": 0,
        **settings,
    }
    torch.manual_seed(7)
    trainer = Trainer(model, TrainingConfig(**values), examples[:rows], examples[:held_out])
    if resume:
        path = checkpoint.checkpoints(Path(resume))[0]
        parts = {name: load_file(path / f"{name}.safetensors") for name in ("params", "moments", "rng")}
        values = json.loads((path / "state.json").read_text())
        counts = checkpoint.Counts(**values.pop("counts"))
        trainer.load_state(checkpoint.TrainerState(**parts, **values, counts=counts))
    trainer.ledger = RowLedger(Path(f"{out}.ledger"), trainer.step)
    recorder = Recorder()

    def after_step(step):
        if step == stop_at:
            state = trainer.state()
            if dist.is_main():
                checkpoint.save_checkpoint(Path(out), state, {}, keep=2)
            raise StopIteration

    with suppress(StopIteration):
        trainer.run(Reporters(recorder), after_step)
    state = trainer.state()
    tensors = {f"param {name}": value for name, value in state.params.items()}
    tensors |= {f"grad {name}": param.grad for name, param in trainer.named_params.items() if param.grad is not None}
    tensors |= {f"moment {name}": value for name, value in state.moments.items()}
    file = Path(f"{out}.{dist.rank()}.safetensors")
    save_file({name: value.detach().cpu().clone() for name, value in tensors.items()}, file)
    file.with_suffix(".json").write_text(json.dumps(recorder.rows))
    return trainer


def main(plan):
    """Do every case of the plan."""
    for name, case in plan["cases"].items():
        train_case(f"{plan['out']}/{name}", **case)


if __name__ == "__main__":
    with dist.processes():
        main(json.loads(Path(sys.argv[1]).read_text()))
