"""The commands as Python: `lorakeet.train(...)` returns a `Run`, which evaluates, chats and merges.

data in: names and dictionaries, as the command line has them → out: a run directory and answers. Each function here
puts the stages together in the order of the data's way; none of them computes anything itself.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakeet.config import RunConfig, dump_yaml, load_yaml
from lorakeet.data.conversation import Conversation, Example
from lorakeet.data.template import Template, template_for
from lorakeet.data.tokenizer import Tokenizer, load_tokenizer
from lorakeet.errors import CheckpointError, ConfigError
from lorakeet.lora.adapter import load_adapter, save_adapter
from lorakeet.lora.inject import inject
from lorakeet.models import registry, weights
from lorakeet.models.phi3 import Phi3ForCausalLM
from lorakeet.ops.hardware import choose_dtype, keep_freed_memory
from lorakeet.training import checkpoint
from lorakeet.training.metrics import ConsoleReporter, JsonlReporter, Reporter, Reporters
from lorakeet.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A model ready for use, with what it takes to talk to it."""

    model: Phi3ForCausalLM
    tokenizer: Tokenizer
    template: Template
    directory: Path
    """Where the base model lies."""
    run: "Run | None" = None
    """The run whose adapter is in the model, if any."""


@dataclass(frozen=True)
class Run:
    """A finished or unfinished training run on disk."""

    directory: Path

    @property
    def config(self) -> RunConfig:
        """The run's whole configuration."""
        return RunConfig(**load_yaml(self.directory / "config.yaml"))

    @property
    def adapter_directory(self) -> Path:
        """Where the adapter lies, in PEFT's format."""
        return self.directory / "adapter"

    def load(self) -> Loaded:
        """Load the base model with this run's adapter in it."""
        config = self.config
        loaded = load_model(config.model, bf16=config.training_config.bf16, template=config.data.template)
        load_adapter(loaded.model, self.adapter_directory, base_hash=weights.fingerprint(loaded.directory))
        loaded.model.eval()
        return dataclasses.replace(loaded, run=self)


def open_run(path: str | Path | None = None) -> Run:
    """Open a run directory; the newest one under runs/ where none is named."""
    if path is not None:
        run = Run(Path(path))
        if not (run.directory / "config.yaml").is_file():
            raise CheckpointError("E-CKPT-100", "is no run directory: it has no config.yaml", place=str(path))
        return run
    found = sorted(Path("runs").glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise CheckpointError("E-CKPT-101", "no run under runs/", fix="Train first: lorakeet train MODEL DATA")
    return Run(found[-1].parent)


def load(run_or_model: str | Path | None = None) -> Loaded:
    """Load a run with its adapter, or a plain model; the newest run where nothing is named."""
    if run_or_model is None or (Path(run_or_model) / "config.yaml").is_file():
        return open_run(run_or_model).load()
    return load_model(str(run_or_model))


def load_model(name: str, *, bf16: bool | None = None, template: str | None = None) -> Loaded:
    """Load a base model by alias, directory or hub id, on the best device and in the best dtype of this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    directory = registry.resolve(name)
    tokenizer = load_tokenizer(directory)
    model = weights.load_model(directory, dtype=choose_dtype(bf16, device), device=device)
    return Loaded(model.eval(), tokenizer, template_for(tokenizer, name=template), directory)
