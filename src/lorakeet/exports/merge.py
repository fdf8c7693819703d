"""A plain Hugging Face model directory from a base model and an adapter.

data in: a model directory, an adapter directory → out: a directory that transformers loads with the same logits.
Each adapted weight becomes W + scaling * B @ A, added in float32 and rounded once; one tensor is merged and written
at a time, so that the base model is in memory once and nothing else is. The directory appears whole or not at all.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lorakeet.data.tokenizer import load_tokenizer
from lorakeet.errors import AdapterError
from lorakeet.exports.drift import Drift
from lorakeet.files.durable import new_directory, require_space, write_file, writing
from lorakeet.files.output import check_output as check_output
from lorakeet.lora.adapter import load_adapter
from lorakeet.lora.inject import lora_layers
from lorakeet.models import weights
from lorakeet.models.config import DecoderConfig
from lorakeet.models.config_file import read_json
from lorakeet.models.decoder import CausalLM
from lorakeet.models.tokenizer_files import copy_tokenizer

_TIED = ("model.embed_tokens", "lm_head")
# What a generation_config.json may say that is still right for the merged model; stop ids are written anew.
_KEPT = ("bos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty")


@dataclass(frozen=True)
class Merged:
    """What was written."""

    directory: Path
    dtype: str
    num_merged: int
    """Weights that an update was added to."""
    num_bytes: int
    base_hash: str
    """Fingerprint of the base model's weights."""
    drift: Drift | None = None
    """How far the merged model is from the trained one, where that had a quantised base."""


def merge(
    base: Path,
    adapter: Path,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = weights.DEFAULT_SHARD_BYTES,
) -> Merged:
    """Write the merged model to `output`, which must not exist or be empty; `dtype` is the base weights' own if None.

    Raises:
        ConfigError: E-CFG-48 if `output` holds something, 46 if it cannot be written, 47 if the disk is full.
        AdapterError: E-ADPT-64 for another base, 108 for an update of tied weights, 109 for one too large.
    """
    check_output(output)
    base_hash = weights.fingerprint(base)
    model = weights.load_model(base)
    load_adapter(model, adapter, base_hash=base_hash)
    check_tied(model)
    dtype = dtype or model.model.norm.weight.dtype
    require_space(output.parent, sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize)
    with writing(output), new_directory(output) as draft:
        weights.save_weights(merged_tensors(model, dtype), draft, model.config, dtype=dtype, max_shard_bytes=max_shard_bytes)
        copy_tokenizer(base, draft)
        _write_generation_config(base, draft, model.config)
    return Merged(
        directory=output,
        dtype=str(dtype).removeprefix("torch."),
        num_merged=sum(1 for _ in lora_layers(model)),
        num_bytes=sum(file.stat().st_size for file in output.iterdir()),
        base_hash=base_hash,
    )


def merged_tensors(model: CausalLM, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Return the tensors of an adapted model with every update added, one at a time, under the base model's names.

    Raises: AdapterError if an update is not finite, or too large for `dtype`.
    """
    layers = dict(lora_layers(model))
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        if path not in layers:
            yield name, parameter.detach().to(dtype)
        elif leaf == "weight":
            merged = layers[path].merged_weight(dtype)
            if not bool(merged.isfinite().all()):
                raise AdapterError("E-ADPT-109", f"merging makes {name} infinite or NaN in {dtype}", fix="Merge in float32")
            yield name, merged
        elif not leaf.startswith("lora_"):
            yield name, parameter.detach().to(dtype)


def check_tied(model: CausalLM) -> None:
    """Refuse an update of one of two tied weights: the merged directory has only one tensor for both."""
    tied = [path for path, _ in lora_layers(model) if path in _TIED]
    if tied and model.config.tie_word_embeddings:
        raise AdapterError(
            "E-ADPT-108",
            f"the adapter changes {', '.join(tied)}, which this model ties to {' and '.join(_TIED)}",
            fix="Train without embedding and head, or use the adapter unmerged",
        )


def _write_generation_config(base: Path, directory: Path, config: DecoderConfig) -> None:
    """Name every id that ends an answer, so that whoever loads the model stops where training stopped."""
    file = base / "generation_config.json"
    old = read_json(file) if file.is_file() else {}
    values = {key: old[key] for key in _KEPT if old.get(key) is not None}
    for key, own in (("bos_token_id", config.bos_token_id), ("pad_token_id", config.pad_token_id)):
        if own is not None:
            values.setdefault(key, own)
    values["eos_token_id"] = sorted(load_tokenizer(base).stop_ids)
    text = json.dumps({"_from_model_config": False, **values}, indent=2)
    write_file(directory / "generation_config.json", (text + "\n").encode())
