"""RUN/rows.jsonl: the loss of every training row in every epoch, as the forward pass found it on the way.

data in: the sums of losses of a step's rows → out: one line a row: step, epoch (from 1), place, loss (mean of its supervised
tokens, in nats, before the step), tokens. A resumed run takes out what lies beyond its checkpoint. Computes nothing anew.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from lorakeet import dist
from lorakeet.data.conversation import Example
from lorakeet.files import durable
from lorakeet.rundir.metrics_file import drop_lines

FILE = "rows.jsonl"


class RowLedger:
    """Collects the losses of rows in all processes; the main one writes."""

    def __init__(self, run_directory: Path, first_step: int = 0) -> None:
        self._path = run_directory / FILE
        self._sums: list[torch.Tensor] = []
        self._lines: list[str] = []
        if dist.is_main():
            self._begin(first_step)

    def _begin(self, first_step: int) -> None:
        """Keep the lines up to `first_step`; those beyond come again."""
        with durable.writing(self._path):
            drop_lines(self._path, first_step)

    def add(self, sums: torch.Tensor) -> None:
        """Take the sums of losses of one micro-batch's rows, still on their device."""
        self._sums.append(sums.detach())

    def drop(self) -> None:
        """Forget the micro-batches of a step that is not taken."""
        self._sums.clear()

    def end_step(self, step: int, epoch: int, micro_batches: Sequence[Sequence[Example]]) -> None:
        """Note the rows of a finished step, whose micro-batches were added in this order."""
        for examples, sums in zip(micro_batches, self._sums, strict=True):
            # A process without rows of its own keeps the others company with somebody else's.
            for example, total in zip(examples, sums.tolist() if examples else [], strict=True):
                if tokens := example.num_supervised_tokens:
                    row = {"step": step, "epoch": epoch, "place": example.place, "loss": round(total / tokens, 5)}
                    self._lines.append(json.dumps(row | {"tokens": tokens}))
        self._sums.clear()

    def write(self, *, sync: bool = False) -> None:
        """Write what was noted since, by all processes, which must call this at the same time; `sync` forces it to disk."""
        lines = [line for part in dist.gather_values(self._lines) for line in part]
        self._lines.clear()
        if dist.is_main():
            with durable.writing(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
