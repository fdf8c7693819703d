"""Names of the parts of fused layers mean the layer when all are named, and stop the run when only some are."""

import pytest
from torch import nn

from lorakeet.config import LoraConfig
from lorakeet.errors import ConfigError
from lorakeet.lora.fused import in_fused_names
from lorakeet.models.decoder import CausalLM

PARTS = CausalLM.packed_modules_mapping


class Layer(nn.Module):
    def __init__(self, *names):
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(2, 2))


def fused_model():
    return nn.ModuleList([Layer("qkv_proj", "o_proj", "gate_up_proj", "down_proj") for _ in range(2)])


def renamed(**values):
    config, notes = in_fused_names(LoraConfig(**values), fused_model(), PARTS)
    return config, notes


def test_the_notebooks_names_mean_all_four_layers():
    names = ["k_proj", "q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
    config, notes = renamed(target_modules=names)
    assert config.target_modules == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    assert notes == [
        "peft_config.target_modules: q_proj, k_proj and v_proj are one layer of this model, qkv_proj",
        "peft_config.target_modules: gate_proj and up_proj are one layer of this model, gate_up_proj",
    ]


@pytest.mark.parametrize(
    ("key", "names", "text"),
    [
        ("target_modules", ["q_proj", "v_proj", "o_proj"], "names q_proj and v_proj but not k_proj"),
        ("target_modules", ["up_proj"], "names up_proj but not gate_proj"),
        ("target_modules", ["qkv_proj", "q_proj"], "names q_proj but not k_proj and v_proj"),
        ("exclude_modules", ["v_proj"], "names v_proj but not q_proj and k_proj"),
        ("modules_to_save", ["gate_proj"], "names gate_proj but not up_proj"),
        ("rank_pattern", {"q_proj": 4}, "names q_proj but not k_proj and v_proj"),
        ("rank_pattern", {"q_proj": 4, "k_proj": 4, "v_proj": 8}, "wants q_proj, k_proj and v_proj to differ"),
    ],
)
def test_parts_of_a_fused_layer_stop_the_run(key, names, text):
    with pytest.raises(ConfigError, match=rf"^E-CFG-42 peft_config\.{key} {text}; the model has them fused in one "):
        renamed(**{key: names})


def test_a_single_layer_may_be_named_by_its_path():
    config, _ = renamed(target_modules=["1.q_proj", "1.k_proj", "1.v_proj", "o_proj"])
    assert config.target_modules == ["1.qkv_proj", "o_proj"]
    with pytest.raises(ConfigError, match="E-CFG-42"):
        renamed(target_modules=["0.q_proj", "1.k_proj", "1.v_proj"])


def test_patterns_with_one_value_move_to_the_layer():
    parts = {"gate_proj": 2, "up_proj": 2}
    config, _ = renamed(target_modules="all-linear", rank_pattern=parts, alpha_pattern={"^0.gate_proj": 3.0, "^0.up_proj": 3.0})
    assert config.rank_pattern == {"gate_up_proj": 2}
    assert config.alpha_pattern == {"^0.gate_up_proj": 3.0}


def test_the_layer_and_all_its_parts_are_the_layer():
    assert renamed(target_modules=["qkv_proj", "q_proj", "k_proj", "v_proj"])[0].target_modules == ["qkv_proj"]


def test_names_that_the_model_has_are_never_touched():
    model = nn.ModuleList([Layer("q_proj", "k_proj", "v_proj")])
    config = LoraConfig(target_modules=["q_proj", "v_proj"])
    assert in_fused_names(config, model, PARTS) == (config, [])


def test_a_name_that_fits_nothing_is_left_to_find_targets():
    config = LoraConfig(target_modules=["layers.9.q_proj", "nonsense"])
    assert in_fused_names(config, fused_model(), PARTS)[0] == config
