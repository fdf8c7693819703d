"""A plain Hugging Face model directory from a base model and an adapter.

data in: a run's base and adapter → out: files that transformers loads with the same logits. Each adapted weight becomes
W + scaling * B @ A, added in float32 and rounded once. One tensor is read, merged and written at a time, so that the
model is never in memory whole. It does not prove what it has written.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from lorakeet.errors import AdapterError
from lorakeet.exports.artefact import Source
from lorakeet.exports.chat_template import copy_tokenizer_of
from lorakeet.files.durable import require_space, write_file
from lorakeet.lora.inject import lora_layers
from lorakeet.lora.tokens import TrainedTokens
from lorakeet.models import weights
from lorakeet.models.config_file import read_json
from lorakeet.models.decoder import CausalLM

_TIED = ("model.embed_tokens", "lm_head")
# What a generation_config.json may say that is still right for the merged model; stop ids are written anew.
_KEPT = ("bos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty")


def merge(
    source: Source, directory: Path, *, dtype: torch.dtype | None = None, max_shard_bytes: int = weights.DEFAULT_SHARD_BYTES
) -> torch.dtype:
    """Write the merged model into an empty directory; `dtype` is the base weights' own if None. Return the one it has.

    Raises:
        ConfigError: E-CFG-47 if the disk is full.
        AdapterError: E-ADPT-64 for another base, 108 for an update of tied weights, 109 for one too large.
    """
    model = source.outline()
    check_tied(model)
    dtype = dtype or model.model.norm.weight.dtype
    require_space(directory, source.num_weights * dtype.itemsize)
    state = merged_tensors(model, dtype, weights.each_parameter(model, source.base))
    weights.save_weights(state, directory, model.config, dtype=dtype, max_shard_bytes=max_shard_bytes)
    copy_tokenizer_of(source, directory)
    _write_generation_config(source, directory)
    return dtype


def merged_tensors(
    model: CausalLM, dtype: torch.dtype, parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Return the tensors of an adapted model with every update added, one at a time, under the base model's names.

    `parameters` are the model's, by name; each must have its value when its turn comes.

    Raises: AdapterError if an update is not finite, or too large for `dtype`.
    """
    layers = dict(lora_layers(model))
    for name, parameter in parameters:
        path, _, leaf = name.rpartition(".")
        if leaf.startswith("lora_"):
            continue
        if path in layers and leaf == "weight":
            merged = layers[path].merged_weight(dtype)
            # The extremes are finite only if everything is; isfinite would take longer than the merging.
            if not all(bool(extreme.isfinite()) for extreme in torch.aminmax(merged)):
                raise AdapterError("E-ADPT-109", f"merging makes {name} infinite or NaN in {dtype}", fix="Merge in float32")
            yield name, merged
        elif leaf == "weight" and isinstance(module := model.get_submodule(path), TrainedTokens):
            yield name, module.merged_weight(dtype)
        else:
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


def _write_generation_config(source: Source, directory: Path) -> None:
    """Name every id that ends an answer, so that whoever loads the model stops where training stopped."""
    file = source.base / "generation_config.json"
    old = read_json(file) if file.is_file() else {}
    values = {key: old[key] for key in _KEPT if old.get(key) is not None}
    config = source.config
    for key, own in (("bos_token_id", config.bos_token_id), ("pad_token_id", config.pad_token_id)):
        if own is not None:
            values.setdefault(key, own)
    values["eos_token_id"] = sorted(source.tokenizer.stop_ids)
    text = json.dumps({"_from_model_config": False, **values}, indent=2)
    write_file(directory / "generation_config.json", (text + "\n").encode())
