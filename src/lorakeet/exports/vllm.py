"""The adapter for vLLM, and the exact line that serves it.

data in: a run → out: an adapter directory. vLLM takes the fused layers of Phi-3 as they are, but knows one rank and one
alpha for all layers, and ignores patterns silently: they are folded into B. What it refuses is said before anything is
written. The numbers are proven with PEFT; vLLM itself is never run.
"""

import shlex
from pathlib import Path

from lorakeet.adapters.adapter_file import AdapterFile, read_adapter, write_adapter
from lorakeet.adapters.consumers import has_patterns, vllm_rank, vllm_refusals
from lorakeet.adapters.model_card import is_hub_id
from lorakeet.errors import ExportError
from lorakeet.exports import peft
from lorakeet.exports.artefact import Format, Options, Source, Written
from lorakeet.exports.chat_template import copy_tokenizer_of

_FILES = ("adapter_config.json", "adapter_model.safetensors", peft.CARD)


def write(source: Source, directory: Path, options: Options) -> Written:
    """Copy the adapter, or write it with one rank and one scale for all layers.

    Raises: ExportError E-EXP-235 for an adapter that vLLM refuses.
    """
    adapter = read_adapter(source.adapter)
    refusals = vllm_refusals(adapter)
    if refusals:
        raise ExportError(
            "E-EXP-235",
            f"vLLM does not load this adapter: {'; '.join(refusals)}",
            place=str(source.adapter),
            fix="Serve the merged model: --format hf",
        )
    is_plain = not has_patterns(adapter) and "loftq_init" not in adapter.note
    notes = ["The numbers are proven with PEFT: vLLM was not run."]
    copy_tokenizer_of(source, directory)
    if is_plain:
        peft.copy_files(source, directory, _FILES)
    else:
        write_adapter(directory, adapter.pairs, config=adapter.config, base_name=adapter.base_name, note=adapter.note)
        notes.append("Ranks and scales that differ between layers are folded into B: vLLM knows only one of each.")
    return Written(
        dtype="float32",
        commands=(serve_line(source, adapter),),
        notes=(*notes, *context_notes(source), *peft.stop_notes(source)),
        limits=peft.limits(source),
    )


def serve_line(source: Source, adapter: AdapterFile) -> str:
    """Return the command that serves the base model with this adapter."""
    base = source.base_name if is_hub_id(source.base_name) else str(source.base)
    name = source.name or "adapter"
    return (
        f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {vllm_rank(adapter)} "
        f"--lora-modules {shlex.quote(name)}={{path}}{length_flag(source)}"
    )


def length_flag(source: Source) -> str:
    """Keep a LongRoPE model to the length that it was trained at."""
    length = _original_length(source)
    return f" --max-model-len {length}" if length is not None else ""


def context_notes(source: Source) -> tuple[str, ...]:
    length = _original_length(source)
    if length is None:
        return ()
    return (
        f"The context is kept to {length} tokens: with a longer one vLLM takes the long factors for short texts too, "
        "and answers otherwise than here.",
    )


def _original_length(source: Source) -> int | None:
    """Return the length up to which the short factors hold; None without LongRoPE."""
    config = source.config
    longer = config.max_position_embeddings > config.original_max_position_embeddings
    return config.switch_length if longer else None


FORMAT = Format("vllm", "the adapter for vLLM, with the line that serves it", (), write, peft.read)
