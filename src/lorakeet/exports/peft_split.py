"""The adapter for a base whose q, k, v and gate, up are layers of their own, such as a Phi-3 in Llama's layout.

data in: a run → out: an adapter directory: A of a fused layer copied to each of its parts, B cut into their rows, which
is the same update. Programs that load Phi-3 itself, vLLM among them, want the fused adapter; this one is for split
bases alone. It is proven over the run's own base, split the same way, in transformers' Llama or Mistral.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lorakeet.adapters.adapter_file import AdapterFile, Pair, read_adapter, write_adapter
from lorakeet.adapters.consumers import some
from lorakeet.errors import ExportError
from lorakeet.exports import peft
from lorakeet.exports.artefact import Format, Missing, Options, Reader, Source, Written
from lorakeet.exports.chat_template import copy_tokenizer_of
from lorakeet.exports.gate import live_dtype
from lorakeet.models import weights
from lorakeet.models.config import DecoderConfig, LongRope
from lorakeet.models.config_file import config_to_json

_NOT_LLAMAS = ("architectures", "model_type", "original_max_position_embeddings", "partial_rotary_factor")


def write(source: Source, directory: Path, options: Options) -> Written:
    """Write the split adapter.

    Raises: ExportError E-EXP-236 if there is nothing to split, or no split base could exist.
    """
    adapter = read_adapter(source.adapter)
    _check(source, adapter)
    pairs = dict(_split_pairs(adapter, source.config))
    names = sorted({path.rpartition(".")[2] for path in pairs})
    is_whole = {path.rpartition(".")[2] for path in adapter.pairs} == set(adapter.config.target_modules)
    config = adapter.config.model_copy(update={"target_modules": names if is_whole else sorted(pairs), "exclude_modules": []})
    write_adapter(directory, pairs, config=config, base_name=None, note=adapter.note, others=adapter.others)
    copy_tokenizer_of(source, directory)
    return Written(
        dtype="float32",
        notes=(
            "This is for split bases alone, such as a Phi-3 in Llama's layout; PEFT over Phi-3 itself and vLLM take "
            "RUN/adapter as it is.",
            "It names no base model: which conversion you use is known to you only.",
            *peft.stop_notes(source),
        ),
        limits=peft.limits(source),
    )


def _check(source: Source, adapter: AdapterFile) -> None:
    """Refuse what has no split form."""
    parts = _sizes(source.config)
    fix = "Use RUN/adapter as it is, or --format peft"
    if not any(path.rpartition(".")[2] in parts for path in adapter.pairs):
        raise ExportError("E-EXP-236", "the adapter has no fused layer to split", place=str(source.adapter), fix=fix)
    if source.config.partial_rotary_factor != 1:
        what = "rotates only a part of each head, which no split layout knows"
        raise ExportError("E-EXP-236", f"the base {what}", place=str(source.base), fix=fix)
    fused = [name for name in adapter.others if any(f".{layer}." in name for layer in parts)]
    if fused:
        raise ExportError("E-EXP-236", f"{some(fused)} is saved in full", place=str(source.adapter), fix=fix)


def _sizes(config: DecoderConfig) -> dict[str, dict[str, int]]:
    """Return the rows of each part of each fused layer, in order."""
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "qkv_proj": {"q_proj": q, "k_proj": kv, "v_proj": kv},
        "gate_up_proj": {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size},
    }


def _split(path: str, rows: torch.Tensor, config: DecoderConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Cut the rows of a fused layer into those of its parts; of another layer, return them as they are."""
    owner, _, name = path.rpartition(".")
    sizes = _sizes(config).get(name)
    if sizes is None:
        yield path, rows
    else:
        for part, piece in zip(sizes, rows.split(list(sizes.values())), strict=True):
            yield f"{owner}.{part}", piece.contiguous()


def _split_pairs(adapter: AdapterFile, config: DecoderConfig) -> Iterator[tuple[str, Pair]]:
    for path, pair in adapter.pairs.items():
        lengths = {} if pair.magnitude is None else dict(_split(path, pair.magnitude, config))
        for part, B in _split(path, pair.B, config):
            yield part, Pair(pair.A, B, pair.scaling, pair.is_embedding, lengths.get(part))


def read(source: Source, directory: Path) -> Reader | Missing:
    """Split the base in memory, load it as Llama or Mistral, and put the adapter onto it with PEFT."""
    if not peft.is_peft_there():
        return peft.MISSING
    return peft.in_peft(source, directory, split_base(source))


def split_base(source: Source) -> Any:
    """Return the base model in Llama's layout, as transformers has it; Mistral's is the same with a sliding window."""
    import transformers

    config, dtype = source.config, live_dtype(source)
    kinds = (transformers.LlamaConfig, transformers.LlamaForCausalLM)
    if config.sliding_window is not None:
        kinds = (transformers.MistralConfig, transformers.MistralForCausalLM)  # type: ignore[assignment]
    values = {key: value for key, value in config_to_json(config).items() if key not in _NOT_LLAMAS and value is not None}
    if isinstance(config.rope_scaling, LongRope):  # what Phi-3 finds beside these, Llama looks for among them
        length, factor = config.original_max_position_embeddings, config.rope_scaling.attention_factor
        scale = config.max_position_embeddings / length
        values["rope_scaling"] |= {"original_max_position_embeddings": length, "factor": scale, "attention_factor": factor}
    base = weights.load_model(source.base, dtype=dtype)
    state = {}
    for name, weight in base.named_parameters():
        for path, rows in _split(name.removesuffix(".weight"), weight.data, config):
            state[f"{path}.weight"] = rows
    return kinds[1].from_pretrained(None, config=kinds[0](**values), state_dict=state, dtype=base.model.norm.weight.dtype)


FORMAT = Format("peft-split", "the adapter for a base with separate q, k, v and gate, up", (), write, read)
