"""config.json in both spellings, held against transformers' own reading; and what is refused."""

import copy
import json

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lorakeet.errors import ModelError
from lorakeet.models.config import DecoderConfig
from lorakeet.models.config_file import config_from_json, config_to_json, load_config

# What the hub's config.json files hold, in their own (old) spelling, with shorter factor lists where heads are small.
MINI_128K = {
    "architectures": ["Phi3ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": [1.0 + i for i in range(48)],
        "short_factor": [1.0 + 0.01 * i for i in range(48)],
        "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.3",
    "use_cache": True,
    "vocab_size": 32064,
}
PLAIN = {key: value for key, value in MINI_128K.items() if key != "rope_scaling"}
KINDS = {
    "mini-4k": {**PLAIN, "max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047},
    "mini-128k": MINI_128K,
    "yarn": {**MINI_128K, "rope_scaling": {**MINI_128K["rope_scaling"], "type": "yarn"}},
    "factor": {**MINI_128K, "rope_scaling": {**MINI_128K["rope_scaling"], "factor": 4.0}},
    "attention_factor": {**MINI_128K, "rope_scaling": {**MINI_128K["rope_scaling"], "attention_factor": 1.5}},
    "not longer": {**MINI_128K, "max_position_embeddings": 4096},
    "medium": {**PLAIN, "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 10},
    "phi-4": {**PLAIN, "rope_theta": 250000.0, "num_key_value_heads": 8, "sliding_window": None},
    "Phi-4-mini": {
        **MINI_128K,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.75,
        "tie_word_embeddings": True,
        "eos_token_id": [199999, 200020],
        "vocab_size": 200064,
    },
}


def theirs_of(raw):
    # Copied, because transformers changes the rope_scaling it is given.
    return transformers.Phi3Config(**{key: copy.deepcopy(value) for key, value in raw.items() if key != "auto_map"})


@pytest.mark.parametrize("kind", KINDS)
def test_config_matches_transformers(kind):
    ours, theirs = config_from_json(KINDS[kind], kind), theirs_of(KINDS[kind])
    for key in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "original_max_position_embeddings",
        "rms_norm_eps",
        "sliding_window",
        "tie_word_embeddings",
        "bos_token_id",
        "pad_token_id",
    ):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert (list(ours.eos_token_id) if isinstance(ours.eos_token_id, tuple) else ours.eos_token_id) == (theirs.eos_token_id)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].get("rope_scaling")])
@pytest.mark.parametrize("seq_len", [4096, 4097])
def test_longrope_matches_transformers(kind, seq_len):
    ours, theirs = config_from_json(KINDS[kind], kind), theirs_of(KINDS[kind])
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](theirs, torch.device("cpu"), seq_len=seq_len)
    factors = ours.rope_scaling.long_factor if seq_len > 4096 else ours.rope_scaling.short_factor
    exponents = torch.arange(0, ours.rotary_dim, 2).float() / ours.rotary_dim
    torch.testing.assert_close(1 / (torch.tensor(factors) * ours.rope_theta**exponents), inv_freq, rtol=1e-6, atol=0)
    assert ours.rope_scaling.attention_factor == attention_factor


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("name", ["su", "yarn"])
def test_older_names_of_longrope(key, name):
    # transformers' Phi-3 takes both names for longrope as well (5.24 only fails to find the original length with "su").
    factors = {key: MINI_128K["rope_scaling"][key] for key in ("short_factor", "long_factor")}
    ours = config_from_json({**MINI_128K, "rope_scaling": {**factors, key: name}}, name)
    assert ours == config_from_json(MINI_128K, "longrope")


def test_attention_factor_of_phi35_mini():
    scaling = config_from_json(MINI_128K, "mini-128k").rope_scaling
    assert scaling.attention_factor == pytest.approx(1.19024, abs=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_new_spelling_reads_as_the_old_one(kind, tmp_path):
    theirs_of(KINDS[kind]).save_pretrained(tmp_path)
    assert "rope_parameters" in json.loads((tmp_path / "config.json").read_text())
    assert load_config(tmp_path) == config_from_json(KINDS[kind], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_to_dict_roundtrips_and_loads_in_transformers(kind, tmp_path):
    ours = config_from_json(KINDS[kind], kind)
    (tmp_path / "config.json").write_text(json.dumps(config_to_json(ours, "bfloat16")))
    assert load_config(tmp_path) == ours
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is transformers.Phi3Config
    assert theirs.dtype == torch.bfloat16
    theirs.save_pretrained(tmp_path / "again")
    assert load_config(tmp_path / "again") == ours


def test_keys_left_out_are_transformers_defaults():
    ours, theirs = config_from_json({"model_type": "phi3"}, "empty"), transformers.Phi3Config()
    for key in ("vocab_size", "hidden_size", "num_key_value_heads", "max_position_embeddings", "eos_token_id"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


LONGROPE = MINI_128K["rope_scaling"]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"model_type": "mixtral", "auto_map": None}, "E-MODEL-72", "'mixtral': mixtures of experts are not supported"),
        ({"model_type": "qwen3_moe", "auto_map": None}, "E-MODEL-72", "'qwen3_moe': mixtures of experts"),
        ({"model_type": "gemma3", "auto_map": None}, "E-MODEL-72", "'gemma3': of Gemma 3 only the text models"),
        ({"model_type": "gemma4", "auto_map": None}, "E-MODEL-72", "'gemma4', which is not supported"),
        ({"model_type": ["phi3"], "auto_map": None}, "E-MODEL-72", "['phi3'], which is not supported"),
        ({"model_type": None, "auto_map": None}, "E-MODEL-72", "None, which is not supported"),
        ({"model_type": "phi3small"}, "E-MODEL-71", "'phi3small' and needs code of its own (auto_map)"),
        ({"quantization_config": {"bits": 4}}, "E-MODEL-102", "quantised"),
        ({"num_attention_heads": 31}, "E-MODEL-120", "no multiple of 31 heads"),
        ({"num_key_value_heads": 5}, "E-MODEL-120", "no multiple of 5 kv heads"),
        ({"num_attention_heads": 0}, "E-MODEL-120", "num_attention_heads is 0"),
        ({"num_key_value_heads": 0}, "E-MODEL-120", "num_key_value_heads is 0"),
        ({"hidden_size": -3072}, "E-MODEL-120", "hidden_size is -3072"),
        ({"hidden_size": 2**40}, "E-MODEL-120", "hidden_size"),
        ({"hidden_size": "3072"}, "E-MODEL-120", "hidden_size is '3072'"),
        ({"num_hidden_layers": 10**9}, "E-MODEL-120", "num_hidden_layers"),
        ({"num_hidden_layers": True}, "E-MODEL-120", "num_hidden_layers is True"),
        ({"vocab_size": 1.5}, "E-MODEL-120", "vocab_size is 1.5"),
        ({"head_dim": 64}, "E-MODEL-120", "head_dim is 64"),
        ({"sliding_window": -1}, "E-MODEL-120", "sliding_window is -1"),
        ({"rms_norm_eps": 0}, "E-MODEL-120", "rms_norm_eps is 0"),
        ({"rope_theta": float("nan")}, "E-MODEL-120", "rope_theta is nan"),
        ({"rope_theta": 10**400}, "E-MODEL-120", "rope_theta"),
        ({"partial_rotary_factor": 1.5}, "E-MODEL-120", "would be rotated"),
        ({"tie_word_embeddings": "yes"}, "E-MODEL-120", "tie_word_embeddings is 'yes'"),
        ({"hidden_act": "gelu"}, "E-MODEL-120", "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "E-MODEL-120", "attention_bias is True"),
        ({"resid_pdrop": 0.1}, "E-MODEL-120", "resid_pdrop is 0.1"),
        ({"eos_token_id": -1}, "E-MODEL-120", "eos_token_id is -1"),
        ({"eos_token_id": [32000, "x"]}, "E-MODEL-120", "eos_token_id is 'x'"),
        ({"rope_scaling": "longrope"}, "E-MODEL-120", "expected keys and values"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "E-MODEL-120", "rope type is 'linear'"),
        ({"rope_scaling": {**LONGROPE, "short_mscale": 1.2}}, "E-MODEL-120", "unknown keys short_mscale"),
        ({"rope_scaling": {**LONGROPE, "long_factor": [1.0]}}, "E-MODEL-120", "has 1 numbers; expected 48"),
        ({"rope_scaling": {**LONGROPE, "short_factor": [0.0] * 48}}, "E-MODEL-120", "numbers above 0"),
        ({"rope_scaling": {**LONGROPE, "short_factor": None}}, "E-MODEL-120", "must be a list"),
        ({"rope_scaling": {**LONGROPE, "factor": "2"}}, "E-MODEL-120", "factor is '2'"),
        ({"rope_scaling": {**LONGROPE, "attention_factor": -1}}, "E-MODEL-120", "attention_factor is -1"),
        (
            {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 8192}},
            "E-MODEL-120",
            "is 4096, but 8192 in rope_scaling",
        ),
        ({"original_max_position_embeddings": 1}, "E-MODEL-120", "original_max_position_embeddings is 1"),
        ({"max_position_embeddings": 0}, "E-MODEL-120", "max_position_embeddings is 0"),
    ],
)
def test_config_rejects(changes, code, said):
    with pytest.raises(ModelError) as caught:
        config_from_json({**MINI_128K, **changes}, "there/config.json")
    text = str(caught.value)
    assert text.startswith(f"{code} there/config.json ")
    assert said in text
    assert "\n" not in text


def test_another_family_from_transformers_is_refused(tmp_path):
    transformers.GPTNeoXConfig(hidden_size=64, num_attention_heads=4).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"E-MODEL-72 .*config\.json model_type is 'gpt_neox'.* phi3, llama, mistral"):
        load_config(tmp_path)


def test_config_built_in_code_is_checked_too():
    with pytest.raises(ModelError, match="no multiple of 7 heads"):
        DecoderConfig(97, 48, 80, 2, num_attention_heads=7, num_key_value_heads=7)


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (None, "E-MODEL-100", "no such file"),
        (b"{", "E-MODEL-101", "cannot be read as JSON"),
        (b"\xff\xfe{}", "E-MODEL-101", "cannot be read as JSON"),
        (b"[1]", "E-MODEL-101", "expected a JSON object, found list"),
        (b"[" * 200_000, "E-MODEL-101", "cannot be read as JSON"),
        (b" " * (16 * 2**20 + 1), "E-MODEL-101", "more than 16777216"),
    ],
    ids=["absent", "cut", "not UTF-8", "list", "deep", "large"],
)
def test_config_file_rejects(data, code, said, tmp_path):
    if data is not None:
        (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ModelError, match=f"{code} .*config.json .*{said}"):
        load_config(tmp_path)
