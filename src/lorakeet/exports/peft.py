"""The adapter as it is, for PEFT: copied with tokenizer and model card, and read back by PEFT over the base model.

data in: a run → out: an adapter directory that PeftModel.from_pretrained loads. What is here serves the formats that
change an adapter first (vllm, peft-split) as well.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from lorakeet.adapters.adapter_file import read_adapter
from lorakeet.exports.artefact import Format, Limits, Missing, Options, Reader, Source, Written, rounding
from lorakeet.exports.chat_template import copy_tokenizer_of
from lorakeet.exports.gate import live_dtype
from lorakeet.exports.transformers_reader import TransformersReader
from lorakeet.files.durable import write_file
from lorakeet.models.config_file import read_json

CARD = "README.md"
_FILES = ("adapter_config.json", "adapter_model.safetensors", "loftq_init.safetensors", CARD)


def write(source: Source, directory: Path, options: Options) -> Written:
    """Copy the adapter's files, and the base's tokenizer."""
    read_adapter(source.adapter)  # refuses half an adapter
    copy_files(source, directory, _FILES)
    copy_tokenizer_of(source, directory)
    return Written(dtype="float32", notes=stop_notes(source), limits=limits(source))


def copy_files(source: Source, directory: Path, names: tuple[str, ...]) -> None:
    """Copy those files of the adapter that are there."""
    for name in names:
        if (source.adapter / name).is_file():
            write_file(directory / name, (source.adapter / name).read_bytes())


def stop_notes(source: Source) -> tuple[str, ...]:
    """Return which stops an adapter's user must name: they are the base's affair, and the base may lack some."""
    missing = sorted(source.tokenizer.stop_ids - base_stops(source.base))
    if not missing:
        return ()
    names = ", ".join(f"{source.tokenizer.decode([stop])} ({stop})" for stop in missing)
    return (f"The base model's generation_config.json does not stop at {names}; name it as eos_token_id.",)


def base_stops(base: Path) -> frozenset[int]:
    """Return the ids at which transformers ends an answer of the base model."""
    for name in ("generation_config.json", "config.json"):
        stops = read_json(base / name).get("eos_token_id") if (base / name).is_file() else None
        if stops is not None:
            return frozenset(stops if isinstance(stops, list) else [stops])
    return frozenset()


def limits(source: Source) -> Limits:
    """Return how near an adapter must come over the very base, in the precision that both are compared in."""
    dtype = live_dtype(source)
    return rounding(dtype if dtype is not None else torch.bfloat16)


def read(source: Source, directory: Path) -> Reader | Missing:
    """Load the base with transformers and put the adapter onto it with PEFT."""
    if not is_peft_there():
        return MISSING
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(source.base, dtype=live_dtype(source) or "auto")
    return in_peft(source, directory, model)


MISSING = Missing("PEFT", "pip install peft")


def is_peft_there() -> bool:
    """Tell whether PEFT can be imported."""
    return importlib.util.find_spec("peft") is not None


def in_peft(source: Source, directory: Path, model: Any) -> TransformersReader:
    """Put the adapter in `directory` onto a base model of transformers, which stops at the stop tokens named here."""
    import peft
    import transformers

    model.generation_config.eos_token_id = sorted(source.tokenizer.stop_ids)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    consumer = f"PEFT {peft.__version__} and transformers {transformers.__version__}"
    return TransformersReader(consumer, peft.PeftModel.from_pretrained(model, str(directory)), tokenizer)


FORMAT = Format("peft", "the adapter as it is, for PEFT", (), write, read)
