"""A tiny random model of every family, saved by transformers and loaded here."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from lorakeet.models.weights import load_model

SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.5, 3.5, 4.5],
    "factor": 2.0,
    "original_max_position_embeddings": 32,
}
WIDE_HEADS = {"head_dim": 16}
MIXED = {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 5}
GEMMA = {**WIDE_HEADS, "query_pre_attn_scalar": 24, "sliding_window": 5}
KINDS = {
    "phi3": ("Phi3", {"sliding_window": 5, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.5}),
    "llama2": ("Llama", {}),
    "llama3": ("Llama", {"rope_scaling": LLAMA3, **WIDE_HEADS, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama-longrope": ("Llama", {"rope_scaling": LONGROPE}),
    "mistral": ("Mistral", {"sliding_window": 5, **WIDE_HEADS}),
    "ministral": ("Ministral", {**MIXED, **WIDE_HEADS}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 5}),
    "qwen2-yarn": ("Qwen2", {"rope_scaling": YARN, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**WIDE_HEADS, "attention_bias": True}),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3Text", {**GEMMA, "sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "smollm3-window": ("SmolLM3", {"no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 5}),
}


def config_of(kind, **changes):
    """Build transformers' configuration of a kind."""
    name, own = KINDS[kind]
    return getattr(transformers, f"{name}Config")(**{**SIZES, **own, **changes})


def build(kind, **changes):
    """Build transformers' model of a kind, with weights large enough that everything in it shows."""
    config = config_of(kind, attn_implementation="eager", **changes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    adds_one = kind.startswith("gemma")
    with torch.no_grad():
        for name, param in model.named_parameters():
            is_norm = "norm" in name
            param.normal_(0, 0.1 if is_norm else 0.3).add_(1.0 if is_norm and not adds_one else 0.0)
    return model.eval()


@pytest.fixture(params=KINDS, scope="session")
def pair(request, tmp_path_factory):
    """The same weights in transformers and here: `theirs`, `ours`, and the `directory` that holds them."""
    directory = tmp_path_factory.mktemp(request.param)
    theirs = build(request.param)
    theirs.save_pretrained(directory)
    return SimpleNamespace(kind=request.param, theirs=theirs, ours=load_model(directory), directory=directory)
