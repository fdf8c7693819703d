"""A merged model as a plain Hugging Face directory, read back by transformers.

data in: a run → out: a directory that AutoModelForCausalLM loads.
"""

from pathlib import Path

import torch

from lorakeet.exports.artefact import Format, Options, Reader, Source, Written, rounding
from lorakeet.exports.gate import live_dtype
from lorakeet.exports.merge import merge
from lorakeet.exports.transformers_reader import TransformersReader
from lorakeet.exports.vllm import context_notes, length_flag

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write(source: Source, directory: Path, options: Options) -> Written:
    """Merge base and adapter into `directory`."""
    dtype = merge(source, directory, dtype=DTYPES[options.dtype] if options.dtype else None)
    return Written(
        dtype=str(dtype).removeprefix("torch."),
        commands=("lorakeet chat {path}", f"vllm serve {{path}}{length_flag(source)}"),
        notes=context_notes(source),
        limits=rounding(dtype),
    )


def read(source: Source, directory: Path) -> Reader:
    """Load the directory with transformers, in the precision of the live model: few CPUs are fast in 16 bits."""
    return TransformersReader.of_directory(directory, live_dtype(source))


FORMAT = Format("hf", "a merged model for transformers, vLLM and whatever else reads that", tuple(DTYPES), write, read)
