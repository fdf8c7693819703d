"""config.json of every family: what transformers writes is read, what cannot be computed is refused, nothing else happens."""

import copy
import json
import random

import pytest
import transformers

from lorakeet.errors import ModelError
from lorakeet.models.config_file import FAMILIES, config_from_json, config_to_json, load_config
from tests.models.families.conftest import KINDS, config_of

FUZZ_COUNT = 150
# What a stranger's file may hold in any place.
VALUES = [None, True, False, 0, 1, -1, 2, 7, 0.5, 1e-9, 1e400, float("nan"), 2**70, 10**400, "", "silu", "yarn", [], [0], {}]
VALUES += [["full_attention"], [1, 0, 1], {"rope_type": "linear", "factor": 2.0}, {"type": "llama3"}, {"full_attention": None}]


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_writes_is_read_in_both_spellings(kind, tmp_path):
    theirs = config_of(kind)
    theirs.save_pretrained(tmp_path)
    ours = load_config(tmp_path)
    assert (ours.vocab_size, ours.head_dim) == (theirs.vocab_size, getattr(theirs, "head_dim", None) or 8)
    (tmp_path / "config.json").write_text(json.dumps(config_to_json(ours, "bfloat16")))  # in the old spelling
    assert load_config(tmp_path) == ours
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(again) is type(theirs)
    again.save_pretrained(tmp_path / "again")
    assert load_config(tmp_path / "again") == ours


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_left_out_are_transformers_defaults(name, tmp_path):
    transformers.AutoConfig.for_model(name).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert config_from_json({"model_type": name}, name) == load_config(tmp_path), written


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type is 'dynamic'; expected"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear"}}, "rope_scaling.factor is None"),
        ({"model_type": "llama", "rope_scaling": LLAMA3}, "high_freq_factor is 1.0; expected more than low_freq_factor"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear", "mrope_section": []}}, "unknown keys mrope_section"),
        ({"model_type": "llama", "attention_bias": "yes"}, "qkv_bias is 'yes'; expected true or false"),
        ({"model_type": "llama", "hidden_act": "relu"}, "hidden_act is 'relu'; expected silu or gelu_pytorch_tanh"),
        ({"model_type": "llama", "head_dim": 31}, "31 of 31 head elements would be rotated"),
        ({"model_type": "llama", "attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 32}, 'that is model_type "ministral"'),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 32}, "but sliding_window is missing"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"] * 3}, "layer_types names 3 layers; expected 32"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"] * 32}, "must be a list of sliding_attention and full"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"model_type": "gemma2", "attn_logit_softcapping": -1}, "attn_logit_softcapping is -1; expected a number above 0"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; only None"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 2]}, "no_rope_layers must be a list of 0 and 1"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "already quantised"),
    ],
)
def test_what_cannot_be_computed_is_refused(raw, said):
    with pytest.raises(ModelError) as caught:
        config_from_json(raw, "there/config.json")
    assert said in str(caught.value)
    assert str(caught.value).startswith("E-MODEL-1")


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoiled_file_is_read_or_refused_by_name(kind):
    good = json.loads(config_of(kind).to_json_string(use_diff=False))
    good |= config_to_json(config_from_json(good, kind)) if random.Random(kind).random() < 0.5 else {}
    ends = set()
    for number in range(FUZZ_COUNT):
        rng = random.Random(f"{kind}/{number}")
        raw = copy.deepcopy(good)
        for _ in range(rng.randint(1, 3)):
            place = rng.choice([raw, raw, *(value for value in raw.values() if isinstance(value, dict))])
            key = rng.choice([key for key in (*place, "head_dim", "rope_scaling", "layer_types") if key != "model_type"])
            place[key] = rng.choice(VALUES)
        try:
            config = config_from_json(raw, "config.json")
        except ModelError as error:
            refusal = error
        else:
            assert config_from_json(config_to_json(config), "config.json") == config
            ends.add("read")
            continue
        assert "\n" not in str(refusal)
        assert len(str(refusal)) < 2000
        ends.add(refusal.code)
    assert {"read", "E-MODEL-120"} <= ends
