"""One training step of a small random model over given rows, alone or as one of several processes.

data in: rows as JSON → out: loss and gradients of the step, as a safetensors file that the main process writes. Started
by two_processes.py, once for each process: `python -m lorakeet.proofs.ranks PLAN.json OUT`. It knows no user's model: what
several processes exchange has nothing to do with its size.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from lorakeet import dist
from lorakeet.config import LoraConfig, TrainingConfig
from lorakeet.data.conversation import Example
from lorakeet.models.config import DecoderConfig
from lorakeet.models.decoder import CausalLM
from lorakeet.proofs.passes import Pass, draw_adapter, trained
from lorakeet.rundir.metrics_file import Reporter
from lorakeet.rundir.rows import StepRow
from lorakeet.training.loop import Trainer
from lorakeet.training.reporting import Reporters

VOCABULARY = 256


def small_model() -> CausalLM:
    """Build a random model with an adapter, the same one in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CausalLM(
            DecoderConfig(
                vocab_size=VOCABULARY,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        )
    return draw_adapter(model, LoraConfig(r=4, lora_alpha=8))


class _Losses(Reporter):
    """Keeps the loss of the step."""

    value = float("nan")

    def step(self, row: StepRow) -> None:
        """Keep it."""
        self.value = row.loss


def step_of_rows(model: CausalLM, examples: Sequence[Example]) -> Pass:
    """Take one optimizer step over all rows of all processes, each taking its share, and return loss and gradients."""
    settings = TrainingConfig(
        max_steps=1,
        per_device_train_batch_size=len(examples) // dist.world_size(),
        max_grad_norm=0.0,
        eval_strategy="no",
        bf16=False,
    )
    trainer, losses = Trainer(model, settings, examples), _Losses()
    trainer.run(Reporters(losses))
    grads = {name: parameter.grad for name, parameter in trained(model).items() if parameter.grad is not None}
    return Pass(torch.tensor([losses.value], dtype=torch.float64), grads)


def main(arguments: Sequence[str]) -> None:
    """Take the step; the main process writes what came of it."""
    plan, out = arguments
    rows = [Example(ids, tuple(map(tuple, spans))) for ids, spans in json.loads(Path(plan).read_text())]
    with dist.processes():
        done = step_of_rows(small_model(), rows)
        if dist.is_main():
            save_file({"loss": done.losses, **{name: grad.contiguous() for name, grad in done.grads.items()}}, out)
        dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1:])
