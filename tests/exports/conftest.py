"""A small base model on disk with a trained tokenizer, and an adapter whose updates are not zero."""

import copy
import dataclasses
import json
from functools import partial

import pytest
import torch
import transformers

from lorakeet.config import LoraConfig
from lorakeet.data.templates.template import template_for
from lorakeet.data.tokenizer import load_tokenizer
from lorakeet.exports.artefact import Missing, Options, Source
from lorakeet.exports.export import export
from lorakeet.exports.formats import find_format
from lorakeet.lora.adapter import save_adapter
from lorakeet.lora.inject import inject, trained_updates
from lorakeet.models import weights
from tests.data.conftest import data_dir, phi3, phi3_bare, smollm2, trained  # noqa: F401

SIZES = {
    "vocab_size": 640,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "original_max_position_embeddings": 1024,
    "initializer_range": 0.2,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep hashes out of the user's cache."""
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path / "cache"))


def write_base(directory, dtype=torch.float32, tokenizer=None, **changes):
    """Save a base model with transformers, and the tokenizer beside it."""
    tokenizer = tokenizer or trained("bpe")
    changes.setdefault("vocab_size", max(640, tokenizer.vocab_size))
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.eos_id}
    torch.manual_seed(0)
    config = transformers.Phi3Config(**copy.deepcopy({**SIZES, **ids, **changes}))  # it changes rope_scaling in place
    transformers.Phi3ForCausalLM(config).to(dtype).save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer.spec))
    names = {key: getattr(tokenizer, key) for key in ("bos_token", "eos_token", "unk_token") if getattr(tokenizer, key)}
    (directory / "tokenizer_config.json").write_text(json.dumps({**names, "tokenizer_class": "PreTrainedTokenizerFast"}))
    (directory / "chat_template.jinja").write_text(tokenizer.chat_template)
    stops = json.dumps({"eos_token_id": sorted(tokenizer.stop_ids)})
    (directory / "generation_config.json").write_text(stops)
    return directory


def write_adapter(directory, base, **changes):
    """Save an adapter for a base model; returns its directory and the live model."""
    model = weights.load_model(base)
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, **changes})
    inject(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for _, layer in trained_updates(model):
            layer.lora_A.normal_(std=0.2)
            layer.lora_B.normal_(std=0.2)
    save_adapter(
        model, directory, config=config, base_model_name_or_path=str(base), extra={"base_hash": weights.fingerprint(base)}
    )
    return directory, model.eval()


def source_of(base, adapter):
    """Return the parts of a run over a base model."""
    tokenizer = load_tokenizer(base)
    return Source(base, adapter, tokenizer, template_for(tokenizer), base_name="org/tiny", name="mine")


def merge(base, adapter, output, dtype=None):
    """Export a merged model without its proof."""
    unproven = dataclasses.replace(find_format("hf"), read=lambda source, directory: Missing("nobody", "nothing"))
    return export(source_of(base, adapter), unproven, output, Options(dtype))


@pytest.fixture
def base(tmp_path):
    """Write the base model of a test."""
    return partial(write_base, tmp_path / "base")


@pytest.fixture
def adapter(tmp_path):
    """Write the adapter of a test."""
    return partial(write_adapter, tmp_path / "adapter")


@pytest.fixture
def source(base, adapter):
    """Return a run's parts around a tiny model."""

    def build(dtype=torch.float32, *, rows=(), tokenizer=None, base_name="org/tiny", lora=None, **changes):
        directory = base(dtype, tokenizer, **changes)
        saved, _ = adapter(directory, **(lora or {}))
        loaded = load_tokenizer(directory)
        template = template_for(loaded)
        return Source(directory, saved, loaded, template, "Be kind.", base_name, "mine", lambda: rows)

    return build
