"""The run that every fault is thrown at: small, and with all that could go wrong in it.

Dropout, packing, accumulation, two epochs and a bit, evaluations, a logging window that saves fall into the middle of.
A fork server that has imported torch once makes a run take about a second; a run is the command line itself.
"""

import contextlib
import io
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SETTINGS = {
    "training_config": {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "packing": True,
        "max_length": 64,
        "save_steps": 3,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "bf16": False,
        "learning_rate": 1e-2,
    },
    "peft_config": {"r": 2, "lora_dropout": 0.1},
    "data": {"eval_fraction": 0.1},
}
_LENGTH = {"num_train_epochs": None, "max_steps": 4, "save_steps": 2}
SHORT = {
    "training_config": {**SETTINGS["training_config"], **_LENGTH},
    "peft_config": {**SETTINGS["peft_config"], "target_modules": "[o_proj]"},
    "data": SETTINGS["data"],
}
"""A run with few calls to the disk, where each of them is to have its turn."""
_TIMES = {"elapsed_s", "seconds_left", "tokens_per_second", "peak_memory_bytes"}
_PRELOAD = "tests.faults.preload"
Patch = Callable[[], Any]


@dataclass
class Outcome:
    """What a part of the campaign found."""

    kind: str
    num_cases: int = 0
    misses: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class World:
    """A model, rows and a run that nothing happened to, to compare with."""

    root: Path
    straight: Path
    settings: dict[str, dict[str, Any]]
    seconds: float = 0.0
    """How long the undisturbed run takes."""

    def arguments(self, run: Path) -> list[str]:
        """Return the command that begins a run, and goes on with it, without anybody looking."""
        keys = [(section, key, value) for section, part in self.settings.items() for key, value in part.items()]
        sets = [f"{section}.{key}={value}" for section, key, value in keys if value is not None]
        flags = [flag for text in sets for flag in ("--set", text)]
        return ["train", str(self.root / "model"), str(self.root / "rows.jsonl"), "-o", str(run), "--resume", *flags]

    def start(self, run: Path, patch: Patch | None = None) -> "Child":
        """Start the run in a process of its own, after `patch` there."""
        return self.command(self.arguments(run), run.name, patch)

    def command(self, arguments: list[str], name: str, patch: Patch | None = None) -> "Child":
        """Start any command in a process of its own; `name` is that of the file for what it says."""
        environment = {"LORAKEET_CACHE": str(self.root / "cache"), "LORAKEET_COMPILE": "0"}
        return Child(arguments, self.root / f"{name}.err", patch, environment)

    def finish(self, run: Path) -> str:
        """Go on with a run until it ends; return what is wrong with the end, or nothing."""
        child = self.start(run)
        if child.wait() != 0:
            return f"resuming ended with {child.exitcode}: {child.stderr[-300:]}"
        return self.differs(run)

    def differs(self, run: Path) -> str:
        """Compare a finished run with the undisturbed one, to the bit."""
        files = ["adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
        last = max((self.straight / "checkpoints").iterdir()).name
        files += [f"checkpoints/{last}/{name}.safetensors" for name in ("params", "moments", "rng")]
        for name in files:
            if (run / name).read_bytes() != (self.straight / name).read_bytes():
                return f"{name} differs"
        if metrics(run) != metrics(self.straight):
            return "metrics.jsonl differs"
        return ""


def metrics(run: Path) -> list[dict[str, Any]]:
    """Read what a run logged, without what a clock or the machine said."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in _TIMES} for row in rows]


def build_world(root: Path, settings: dict[str, dict[str, Any]] = SETTINGS) -> World:
    """Write model and rows, and train once without any fault."""
    from tests.cli.conftest import write_tiny_model

    root.mkdir(parents=True, exist_ok=True)
    write_tiny_model(root / "model")
    rows = [{"question": f"What is {i} plus {i % 7}?", "answer": f"It is {i + i % 7}."} for i in range(60)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    world = World(root, root / "straight", settings)
    for name in ("first", "straight"):  # the first fills the caches
        began = time.perf_counter()
        child = world.start(root / name)
        assert child.wait() == 0, child.stderr
    shutil.rmtree(root / "first")
    return World(root, root / "straight", settings, time.perf_counter() - began)


class Child:
    """The command line in a process of its own."""

    def __init__(self, arguments: list[str], stderr: Path, patch: Patch | None, environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([_PRELOAD])
        self._stderr = stderr
        self._process = context.Process(target=_main, args=(arguments, stderr, patch, environment))
        self._process.start()

    def signal(self, number: int) -> None:
        """Send a signal, if the process is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def kill(self) -> int:
        """Kill the process."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def wait(self, timeout: float = 60) -> int:
        """Wait for the end; return the exit status, which is the negative signal where one ended it."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.signal(signal.SIGKILL)
            self._process.join()
            raise TimeoutError(f"still running after {timeout} s: {self.stderr[-300:]}")
        return self._process.exitcode

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    @property
    def exitcode(self) -> int | None:
        return self._process.exitcode

    @property
    def stderr(self) -> str:
        """What the process said."""
        return self._stderr.read_text(errors="replace") if self._stderr.exists() else ""


def _main(arguments: list[str], stderr: Path, patch: Patch | None, environment: dict[str, str]) -> None:
    """Be the command line."""
    from lorakeet.cli import main

    sys.stderr = io.TextIOWrapper(open(stderr, "wb", buffering=0), write_through=True)  # noqa: SIM115
    sys.stdout = io.StringIO()
    logging.lastResort = None
    os.environ.update(environment)
    if patch is not None:
        patch()
    sys.argv = ["lorakeet", *arguments]
    try:
        main.main()
    except SystemExit as ending:
        os._exit(ending.code)
