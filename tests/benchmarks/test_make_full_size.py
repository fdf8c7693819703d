"""The random model that full-size measurements use, made small."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.make_full_size import PHI3_MINI, STOP_TOKEN_IDS, make
from lorakeet.models.weights import load_model

TINY = replace(
    PHI3_MINI, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
)


def phi3_tokenizer_dir():
    here = Path(__file__).parents[2]
    for data in (os.environ.get("LORAKEET_TEST_DATA"), here.parent / "shared" / "data"):
        if data and (Path(data) / "phi3-tokenizer").is_dir():
            return Path(data) / "phi3-tokenizer"
    return pytest.skip("the Phi-3 vocabulary is neither in $LORAKEET_TEST_DATA nor in ../shared/data")


def test_full_size_is_phi3_mini():
    with torch.device("meta"):
        theirs = transformers.Phi3ForCausalLM(transformers.Phi3Config())
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 3_821_079_552
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(PHI3_MINI, key) == getattr(theirs.config, key)


def test_model_is_random_and_repeatable(tmp_path):
    make(tmp_path / "a", TINY)
    make(tmp_path / "b", TINY)
    make(tmp_path / "c", TINY, seed=1)
    a, b, c = (load_model(tmp_path / name) for name in "abc")
    weight = a.model.layers[1].mlp.down_proj.weight
    assert weight.dtype == torch.bfloat16
    assert weight.abs().min() >= 2**-6
    assert weight.abs().max() < 2**-5
    assert abs(weight.float().mean()) < 1e-3
    assert 0.02 < weight.float().std() < 0.03
    assert torch.equal(a.model.norm.weight, torch.ones(64, dtype=torch.bfloat16))
    assert torch.equal(weight, b.model.layers[1].mlp.down_proj.weight)
    assert not torch.equal(weight, c.model.layers[1].mlp.down_proj.weight)
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "a").eos_token_id == STOP_TOKEN_IDS


def test_real_vocabulary_is_copied(tmp_path):
    make(tmp_path / "model", TINY, phi3_tokenizer_dir())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>", "<|assistant|>"]) == [32007, 32010, 32001]
    text = tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}], tokenize=False)
    assert text.startswith("<|system|>\nBe brief.<|end|>\n")
