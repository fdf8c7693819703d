"""A tiny Phi-3 on disk and rows for it, as the benchmarks take them."""

import pytest
import torch
import transformers

from lorakeet.data.conversation import Example


@pytest.fixture(scope="session")
def phi3_directory(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=1100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        original_max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    directory = tmp_path_factory.mktemp("phi3") / "model"
    transformers.Phi3ForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture
def rows():
    """Ragged rows that share a beginning."""
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(3, 1100, (20,), generator=generator).tolist()
    lengths = [34, 47, 29, 40]
    return [
        Example(prompt + torch.randint(3, 1100, (n - 20,), generator=generator).tolist(), ((24, n),), f"row {n}")
        for n in lengths
    ]
