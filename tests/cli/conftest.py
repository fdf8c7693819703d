"""A tiny Phi-3 on disk with a real tokenizer, and a cache of the tests' own."""

import json

import pytest
import torch
import transformers

from tests.compiler import uncompiled
from tests.data.conftest import TEMPLATES, trained


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def write_tiny_model(directory):
    tokenizer = trained("bpe")
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=640,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        original_max_position_embeddings=128,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
    )
    transformers.Phi3ForCausalLM(config).save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer.spec))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    (directory / "chat_template.jinja").write_text((TEMPLATES / "phi3-mini.jinja").read_text())
    return directory


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with uncompiled() as patch:
        patch.setenv("LORAKEET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
