"""Write a Phi-3-mini of full size with random weights: 3.82 billion parameters in bf16, 7.6 GB, to measure with.

usage: python -m benchmarks.make_full_size DIR [--tokenizer-dir DIR] [--num-hidden-layers 32] [--seed 0]

in: nothing, or a directory that holds a tokenizer, as Hugging Face files or as one GGUF → out: a model directory.
One tensor is in memory at a time. The model says nothing sensible; its speed and memory are those of the real one.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lorakeet.models.config import DecoderConfig
from lorakeet.models.decoder import CausalLM
from lorakeet.models.weights import save_weights

PHI3_MINI = DecoderConfig(
    vocab_size=32064,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=4096,
    original_max_position_embeddings=4096,
    sliding_window=2047,
)
STOP_TOKEN_IDS = [32000, 32001, 32007]
_SIGN_AND_MANTISSA, _EXPONENT = 0x807F, 121 << 7


def make(directory: Path, config: DecoderConfig, tokenizer_dir: Path | None = None, seed: int = 0) -> None:
    """Write the model directory, with the tokenizer where one is given."""
    save_weights(_random_state(config, seed), directory, config, dtype=torch.bfloat16)
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": STOP_TOKEN_IDS, "pad_token_id": 32000}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    if tokenizer_dir is not None:
        _copy_tokenizer(tokenizer_dir, directory)


def _random_state(config: DecoderConfig, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    with torch.device("meta"):
        model = CausalLM(config)
    rng = np.random.Generator(np.random.SFC64(seed))
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            yield name, torch.full(parameter.shape, 0.0 if config.norms_add_one else 1.0)
        else:
            yield name, _random_tensor(parameter.shape, rng)


def _random_tensor(shape: torch.Size, rng: np.random.Generator) -> torch.Tensor:
    """Draw bf16 numbers of random sign and size 2**-6 to 2**-5, as raw bits: drawing normal ones takes minutes."""
    num_words = math.ceil(shape.numel() / 4)
    bits = rng.integers(0, 2**64, num_words, dtype=np.uint64).view(np.uint16)[: shape.numel()]
    bits &= _SIGN_AND_MANTISSA
    bits |= _EXPONENT
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).view(shape)


def _copy_tokenizer(source: Path, directory: Path) -> None:
    from transformers import AutoTokenizer

    gguf = next((file.name for file in sorted(source.glob("*.gguf"))), None)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf, local_files_only=True)
    template = next((file for file in sorted(source.glob("*chat_template.jinja"))), None)
    if template is not None:
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    tokenizer.save_pretrained(directory)


def main() -> None:
    """Read the command line and write the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tokenizer-dir", type=Path)
    parser.add_argument("--num-hidden-layers", type=int, default=PHI3_MINI.num_hidden_layers)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = replace(PHI3_MINI, num_hidden_layers=arguments.num_hidden_layers)
    start = time.perf_counter()
    make(arguments.directory, config, arguments.tokenizer_dir, arguments.seed)
    print(f"{arguments.directory} written in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
