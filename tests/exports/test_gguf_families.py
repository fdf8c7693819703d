"""GGUF files of every family: llama.cpp makes the ids and log-probabilities of the live model, from the model or its adapter.

Models are tiny and random, tokenizers small and of each family's kind, templates the families' own.
"""

import copy
import json

import pytest
import torch
import transformers

from lorakeet.data.tokenizer import Tokenizer
from lorakeet.errors import ExportError
from lorakeet.exports import gate, gguf_adapter, gguf_families, gguf_model, gguf_tokenizer
from lorakeet.exports.artefact import EXACT, HALF, Options
from lorakeet.exports.export import export
from lorakeet.exports.formats import find_format
from lorakeet.exports.probes import choose_probes
from lorakeet.models.config_file import FAMILIES, config_from_json
from tests.data.conftest import train_bpe
from tests.data.test_families import LLAMA3_WORDS, QWEN_WORDS, family
from tests.exports.conftest import source_of, write_adapter
from tests.models.families.conftest import GEMMA, LLAMA3, WIDE_HEADS, YARN

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

FORMATS = {"merged": find_format("gguf"), "adapter": find_format("gguf-adapter")}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
WINDOWS = {**GEMMA, "query_pre_attn_scalar": 16, "sliding_window": 24}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
ODD_YARN = {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3}
# Kind: (transformers' class, chat template, settings)
KINDS = {
    "llama2": ("Llama", "llama2", {}),
    "llama3": ("Llama", "llama3.1", {"rope_scaling": LLAMA3, **WIDE_HEADS, "tie_word_embeddings": True}),
    "smollm2-biases": ("Llama", "smollm2", {"attention_bias": True, "mlp_bias": True, "rope_scaling": ODD_YARN}),
    "mistral": ("Mistral", "mistral-v0.3", {"sliding_window": None, **WIDE_HEADS}),
    "ministral": ("Ministral", "mistral-nemo", {"sliding_window": 4096, **WIDE_HEADS}),
    "qwen2": ("Qwen2", "qwen2.5", {"rope_scaling": YARN, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", "qwen3", WIDE_HEADS),
    "gemma2": ("Gemma2", "gemma2", {**WINDOWS, **CAPS}),
    "gemma3": (
        "Gemma3Text",
        "gemma3",
        {**WINDOWS, "sliding_window_pattern": 2, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "smollm3": ("SmolLM3", "smollm3", {"num_hidden_layers": 4}),
}
RUNS_OF_SPACES = [["▁", "▁"], ["▁▁", "▁"], ["▁▁", "▁▁"]]
"""Merges that the vocabularies of Llama 2, Mistral and Gemma have, and the small ones lack."""


def tokenizer_of(template: str) -> Tokenizer:
    state = copy.deepcopy(family(template)[0]._state())
    if state["spec"]["model"].get("byte_fallback"):
        state["spec"]["model"]["merges"][:0] = RUNS_OF_SPACES
    return Tokenizer(**state)


def config_of(kind, **changes):
    name, _, own = KINDS[kind]
    return getattr(transformers, f"{name}Config")(**copy.deepcopy({**SIZES, **own, **changes}))


def write_base(directory, kind):
    """Save a random model of a kind with its tokenizer and template."""
    tokenizer = tokenizer_of(KINDS[kind][1])
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.eos_id}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(kind, vocab_size=tokenizer.vocab_size + 3, **ids))
    with torch.no_grad():
        for name, param in model.named_parameters():
            is_norm = "norm" in name
            param.normal_(0, 0.1 if is_norm else 0.25).add_(1.0 if is_norm and "gemma" not in kind else 0.0)
    model.save_pretrained(directory)
    names = {key: getattr(tokenizer, key) for key in ("bos_token", "eos_token", "unk_token") if getattr(tokenizer, key)}
    for name, value in {
        "tokenizer.json": tokenizer.spec,
        "tokenizer_config.json": {**names, "tokenizer_class": "PreTrainedTokenizerFast"},
        "generation_config.json": {"eos_token_id": sorted(tokenizer.stop_ids)},
    }.items():
        (directory / name).write_text(json.dumps(value))
    (directory / "chat_template.jinja").write_text(tokenizer.chat_template)
    return directory


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Return a run over a tiny model of a kind; each is made once."""
    made = {}

    def build(kind):
        if kind not in made:
            directory = tmp_path_factory.mktemp(kind)
            base = write_base(directory / "base", kind)
            adapter, _ = write_adapter(directory / "adapter", base, use_rslora=True, rank_pattern={"q_proj": 2})
            made[kind] = source_of(base, adapter)
        return made[kind]

    return build


@pytest.fixture
def proven(tmp_path, monkeypatch):
    """Write a run in a format and return what a short gate says against it."""
    monkeypatch.setattr(gate, "LONG", 8)

    def prove(parts, form):
        form.write(parts, tmp_path, Options("f32"))
        return gate.failures(gate.measure(parts, form.read(parts, tmp_path), choose_probes(parts, count=20)), EXACT)

    return prove


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_has_the_ids_and_log_probabilities_of_the_live_one(kind, run_of, proven):
    assert proven(run_of(kind), FORMATS["merged"]) == []


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "qwen3", "gemma2", "gemma3", "smollm3"])
def test_an_adapter_over_its_base_has_them_too(kind, run_of, proven):
    assert proven(run_of(kind), FORMATS["adapter"]) == []


@pytest.mark.parametrize(("form", "module"), [("merged", gguf_model), ("adapter", gguf_adapter)])
def test_the_gate_catches_rows_of_q_and_k_left_as_they_are(form, module, run_of, proven, monkeypatch):
    monkeypatch.setattr(module, "as_llama_cpp_has_it", lambda path, rows, config: rows)
    assert "nats" in proven(run_of("llama2"), FORMATS[form])[0]


def test_the_gate_catches_a_date_that_training_had_not(run_of, proven, monkeypatch):
    monkeypatch.setattr(gguf_tokenizer, "_without_their_day", lambda template: template)
    assert "other token ids" in proven(run_of("llama3"), FORMATS["merged"])[0]


REFUSED = {
    "qwen3": ({"attention_bias": True}, "o_bias is True, not False"),
    "llama2": ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act is 'gelu_pytorch_tanh', not 'silu'"),
    "qwen2": ({"rope_scaling": LLAMA3}, "positions are scaled by Llama3Rope"),
    "mistral": ({"rope_scaling": {**YARN, "truncate": False}}, "yarn's ramp is not rounded to whole pairs"),
    "gemma2": (
        {"query_pre_attn_scalar": 24, "final_logit_softcapping": None},
        "query_pre_attn_scalar is 24, not 16; a soft cap",
    ),
    "gemma3": ({"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}, "without a sliding window"),
    "smollm3": ({"no_rope_layer_interval": 2, "no_rope_layers": None}, "know no positions are not every 4th"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_named(kind):
    changes, said = REFUSED[kind]
    assert not list(gguf_families.differences(config_from_json(config_of(kind).to_dict(), "here")))
    assert said in "; ".join(gguf_families.differences(config_from_json(config_of(kind, **changes).to_dict(), "here")))


def test_a_model_that_llama_cpp_computes_otherwise_is_refused_before_anything_is_written(tmp_path, run_of):
    parts = run_of("qwen2")
    strange = copy.copy(parts)
    strange.__dict__["config"] = config_from_json(config_of("qwen3", attention_bias=True).to_dict(), "here")
    for form in FORMATS.values():
        with pytest.raises(ExportError, match=r"E-EXP-238.*qwen3.*o_bias"):
            export(strange, form, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out*"))


def test_gelu_in_16_bits_is_allowed_for(run_of):
    assert gguf_model.limits(run_of("gemma3").config, "f32") == HALF
    assert gguf_model.limits(run_of("llama2").config, "f32") == EXACT


def test_every_family_has_its_architecture():
    assert set(gguf_families.ARCHITECTURES) == set(FAMILIES)


def test_the_window_that_llama_cpp_lacks_bounds_what_is_claimed(run_of):
    assert gguf_model.proven_context(run_of("gemma2").config) == 1024
    mistral = config_from_json(config_of("mistral", sliding_window=64).to_dict(), "here")
    assert gguf_model.proven_context(mistral) == 64
    assert "equal up to 64 tokens" in "".join(gguf_model.notes(mistral))


TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("words", "wholes", "name"),
    [
        (LLAMA3_WORDS, True, "llama-bpe"),
        (QWEN_WORDS, False, "qwen2"),
        (TEKKEN_WORDS, True, "tekken"),
        (r"\p{L}+| +", False, ""),
    ],
)
def test_ways_to_find_words_have_llama_cpps_names(words, wholes, name):
    tokenizer = train_bpe(words=words)
    tokenizer.spec["model"]["ignore_merges"] = wholes
    if name:
        assert gguf_tokenizer.pre_name(tokenizer) == name
    else:
        with pytest.raises(ExportError, match=r"E-EXP-204.*finds words.*\\p\{L\}\+\| \+"):
            gguf_tokenizer.pre_name(tokenizer)
