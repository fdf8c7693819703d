"""A model you can talk to: decoder, tokenizer and template, which belong together and travel together.

data in: a model's name → out: a ChatModel on the best device and in the best dtype of this machine, into which an
adapter can be loaded. `load` is the only loader. What is done with a ChatModel is said elsewhere: infer/ answers, evaluation/
measures, training/ trains its adapters.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from lorakeet import dist, progress
from lorakeet.config import QuantizationConfig, RunConfig
from lorakeet.data.templates.template import Template, template_for
from lorakeet.data.tokenizer import Tokenizer, load_tokenizer
from lorakeet.errors import MissingExtraError
from lorakeet.lora.adapter import load_adapter
from lorakeet.machine.hardware import choose_dtype
from lorakeet.machine.memory import keep_few_products
from lorakeet.models import registry, weights
from lorakeet.models.decoder import CausalLM
from lorakeet.quant.loading import load_quantized_model

FULL_PRECISION = QuantizationConfig()


@dataclass(frozen=True)
class ChatModel:
    """A model with everything that it takes to talk to it."""

    model: CausalLM
    tokenizer: Tokenizer
    template: Template
    directory: Path
    """Directory of the base model."""
    system: str | None = None
    """System prompt that a conversation starts with unless it brings its own: the one that a run was trained with."""

    def with_adapter(self, adapter: Path) -> "ChatModel":
        """Load an adapter directory, in PEFT's format, into the model, in place.

        Raises: AdapterError, also if the adapter belongs to another base model.
        """
        load_adapter(self.model, adapter, base_hash=weights.fingerprint(self.directory))
        self.model.eval()
        return self

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return self.model.config.max_position_embeddings


def load(
    name: str,
    *,
    bf16: bool | None = None,
    template: str | None = None,
    quantization: QuantizationConfig = FULL_PRECISION,
    system: str | None = None,
) -> ChatModel:
    """Load a model by alias, directory or hub id, in evaluation mode.

    Args:
        bf16: compute in bfloat16 or not; None measures which is faster here.
        template: name of a chat template; None finds the model's own.
        quantization: hold the linear layers in 4 or 8 bits.
        system: becomes `ChatModel.system`.
    Raises: MissingExtraError if the model is to be quantised and bitsandbytes is not installed; ModelError.
    """
    if quantization.is_on and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError.of("bitsandbytes", "qlora", "a base model in 4 or 8 bits")
    keep_few_products()
    progress.report(f"loading {name}")
    device = dist.device()
    with dist.one_of_each_machine_first():
        directory = registry.resolve(name)
    tokenizer = load_tokenizer(directory)
    dtype = getattr(torch, dist.from_main(str(choose_dtype(bf16, device)).removeprefix("torch.")))
    if quantization.is_on:
        with dist.one_of_each_machine_first():  # it fills the cache of quantised weights
            model = load_quantized_model(directory, quantization, dtype=dtype, device=device)
    else:
        model = weights.load_model(directory, dtype=dtype, device=device)
    return ChatModel(model.eval(), tokenizer, template_for(tokenizer, name=template), directory, system)


def load_base(config: RunConfig, *, bf16: bool | None = None, quantization: QuantizationConfig | None = None) -> ChatModel:
    """Load the base model of a run as its configuration says.

    Args:
        bf16: the precision if the configuration leaves it open.
        quantization: how to hold the linear layers, whatever the run trained over.
    Raises: as `load`.
    """
    return load(
        config.model,
        bf16=bf16 if config.bf16 is None else config.bf16,
        template=config.data.template,
        quantization=quantization or config.quantization_config,
        system=config.data.system,
    )
