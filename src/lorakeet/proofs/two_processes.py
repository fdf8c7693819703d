"""Two processes train what one does."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from lorakeet.data.conversation import Example
from lorakeet.proofs.passes import SHAKEN, Pass, allowed, distances, shaken
from lorakeet.proofs.proof import Measured, NotChecked, Proof, worst
from lorakeet.proofs.ranks import VOCABULARY, small_model, step_of_rows
from lorakeet.proofs.subject import Subject

WORKER = "lorakeet.proofs.ranks"
MOST_SECONDS = 240
"""A process that takes longer hangs."""


def two_are_one(subject: Subject) -> Measured | NotChecked:
    """Take one step over the rows in two processes that share them, and in one, and compare loss and gradients."""
    if (os.cpu_count() or 1) < 2:
        return NotChecked("Nothing to do: this machine has one core")
    rows = [replace(example, input_ids=[id % VOCABULARY for id in example.input_ids]) for example in subject.examples]
    alone, model = step_of_rows(small_model(), rows), small_model()
    with shaken(model):
        rounding = distances(step_of_rows(model, rows), alone)
    return worst(distances(_in_two(rows, subject.scratch), alone), allowed(rounding, torch.float32), SHAKEN)


def _in_two(rows: Sequence[Example], folder: Path) -> Pass:
    """Run the worker twice, as torchrun would, and read what the first one has written."""
    plan, out = folder / "rows.json", folder / "two.safetensors"
    plan.write_text(json.dumps([(row.input_ids, row.spans) for row in rows]))
    started = [
        subprocess.Popen(
            [sys.executable, "-m", WORKER, str(plan), str(out)], stderr=subprocess.PIPE, env=os.environ | environment, text=True
        )
        for environment in _environments()
    ]
    try:
        errors = [process.communicate(timeout=MOST_SECONDS)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise RuntimeError(f"a process ended: {' '.join(errors).strip().splitlines()[-1:]}")
    found = load_file(out)
    return Pass(found.pop("loss"), found)


def _environments() -> list[dict[str, str]]:
    """Return what torchrun would put into the environment of two processes of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    alone = {"CUDA_VISIBLE_DEVICES": "", "LORAKEET_COMPILE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    return [{**common, **alone, "RANK": number, "LOCAL_RANK": number} for number in ("0", "1")]


PROOF = Proof(
    name="two processes = one",
    compares="Loss and gradients of one step over the rows, of a small random model in two processes, and in one.",
    fix="Train in one process, and report it with the output of lorakeet doctor",
    measure=two_are_one,
)
