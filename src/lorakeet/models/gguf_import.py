"""A Llama model in a GGUF file, written as a Hugging Face directory in the Phi-3 layout.

data in: one GGUF file (the embedded demo model, SmolLM2) → out: config.json, model.safetensors, tokenizer files,
chat template and generation_config.json. A Llama decoder is a Phi-3 decoder whose projections are not fused, so
concatenating q, k, v and gate, up loses nothing; quantised blocks are expanded and rounded to bf16.
Reads no other architecture, and no other tokenizer than SmolLM's byte-level BPE.

Source of the format and of the row order of q and k: ggml-org/llama.cpp, gguf-py and convert_hf_to_gguf.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lorakeet.errors import MissingExtraError, ModelError
from lorakeet.models.config import DecoderConfig
from lorakeet.models.weights import save_weights

VERSION = 1
"""Raised whenever the same GGUF would become other files; older conversions are then made anew."""
_CONTROL, _USER_DEFINED = 3, 4
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    "ffn_down": "mlp.down_proj",
}


class _Gguf:
    """The metadata and tensors of a GGUF file."""

    def __init__(self, file: Path) -> None:
        try:
            from gguf import GGUFReader
        except ImportError:
            raise MissingExtraError.of("gguf", "gguf", "The embedded model") from None
        self.place = str(file)
        try:
            self._reader = GGUFReader(file)
        except (OSError, ValueError, IndexError) as error:
            raise ModelError("E-MODEL-110", f"cannot be read as GGUF: {error}", place=self.place) from None
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def value(self, key: str) -> Any:
        """Return a metadata value."""
        field = self._reader.fields.get(key)
        if field is None:
            raise ModelError("E-MODEL-110", f"{key} is missing", place=self.place)
        return field.contents()

    def has(self, tensor: str) -> bool:
        """Say whether the file holds a tensor."""
        return tensor in self._tensors

    def tensor(self, name: str) -> torch.Tensor:
        """Expand a tensor to fp32."""
        from gguf.quants import dequantize

        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelError("E-MODEL-110", f"tensor {name} is missing", place=self.place)
        return torch.tensor(dequantize(tensor.data, tensor.tensor_type))


def convert(file: Path, directory: Path) -> None:
    """Write the GGUF `file` as a Phi-3 model directory.

    Raises: ModelError if the file is no Llama with SmolLM's tokenizer; MissingExtraError without gguf.
    """
    gguf = _Gguf(file)
    for key, expected in (
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "smollm"),
    ):
        if gguf.value(key) != expected:
            raise ModelError("E-MODEL-110", f"{key} is {gguf.value(key)!r}, expected {expected!r}", place=gguf.place)
    config = _config(gguf)
    save_weights(_state(gguf, config), directory, config, dtype=torch.bfloat16)
    _write_tokenizer(gguf, config, directory)


def _config(gguf: _Gguf) -> DecoderConfig:
    def of_llama(key: str) -> Any:
        return gguf.value(f"llama.{key}")

    return DecoderConfig(
        vocab_size=len(gguf.value("tokenizer.ggml.tokens")),
        hidden_size=of_llama("embedding_length"),
        intermediate_size=of_llama("feed_forward_length"),
        num_hidden_layers=of_llama("block_count"),
        num_attention_heads=of_llama("attention.head_count"),
        num_key_value_heads=of_llama("attention.head_count_kv"),
        max_position_embeddings=of_llama("context_length"),
        original_max_position_embeddings=of_llama("context_length"),
        rms_norm_eps=of_llama("attention.layer_norm_rms_epsilon"),
        rope_theta=of_llama("rope.freq_base"),
        tie_word_embeddings=not gguf.has("output.weight"),
        bos_token_id=gguf.value("tokenizer.ggml.bos_token_id"),
        eos_token_id=gguf.value("tokenizer.ggml.eos_token_id"),
        pad_token_id=gguf.value("tokenizer.ggml.padding_token_id"),
    )


def _state(gguf: _Gguf, config: DecoderConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Return the tensors under their Phi-3 names, one at a time."""
    for theirs, ours in _NAMES.items():
        if gguf.has(theirs):
            yield ours, gguf.tensor(theirs)
    for i in range(config.num_hidden_layers):
        block, layer = f"blk.{i}", f"model.layers.{i}"
        for theirs, ours in _LAYER_NAMES.items():
            yield f"{layer}.{ours}.weight", gguf.tensor(f"{block}.{theirs}.weight")
        q = _half_split(gguf.tensor(f"{block}.attn_q.weight"), config.num_attention_heads)
        k = _half_split(gguf.tensor(f"{block}.attn_k.weight"), config.num_key_value_heads)
        yield f"{layer}.self_attn.qkv_proj.weight", torch.cat([q, k, gguf.tensor(f"{block}.attn_v.weight")])
        gate_up = [gguf.tensor(f"{block}.{name}.weight") for name in ("ffn_gate", "ffn_up")]
        yield f"{layer}.mlp.gate_up_proj.weight", torch.cat(gate_up)


def _half_split(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder the rows of each head: GGUF keeps rotating pairs side by side, this decoder half a head apart."""
    return weight.view(num_heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def _write_tokenizer(gguf: _Gguf, config: DecoderConfig, directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = gguf.value("tokenizer.ggml.tokens"), gguf.value("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in gguf.value("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # "smollm" splits every digit off before the words are found. transformers' own reading of a GGUF leaves that
    # out, and then joins the spaces and line breaks in front of a number in another way than the model was trained with.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            tokenizer.add_special_tokens([AddedToken(token, special=kind == _CONTROL, normalized=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {
        "bos_token": tokens[gguf.value("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[gguf.value("tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[gguf.value("tokenizer.ggml.padding_token_id")],
        "unk_token": tokens[gguf.value("tokenizer.ggml.unknown_token_id")],
    }
    _write_json(
        directory / "tokenizer_config.json",
        {
            **named,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_position_embeddings,
            "clean_up_tokenization_spaces": False,
        },
    )
    (directory / "chat_template.jinja").write_text(gguf.value("tokenizer.chat_template"), encoding="utf-8")
    # Turns end with eos; the end of a document, which is this vocabulary's unknown token, ends an answer too.
    _write_json(
        directory / "generation_config.json",
        {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": [config.eos_token_id, gguf.value("tokenizer.ggml.unknown_token_id")],
            "pad_token_id": config.pad_token_id,
        },
    )


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
