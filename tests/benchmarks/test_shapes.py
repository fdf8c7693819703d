"""The models of other families' shapes are of the real sizes, and are measured as Phi-3's layout is."""

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks import throughput, workloads
from benchmarks.gates import check_gates
from benchmarks.make_full_size import make
from benchmarks.system import target_names
from lorakeet.models.config_file import config_from_json
from lorakeet.models.decoder import CausalLM

SMALL = {"vocab_size": 1100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.fixture
def plain_python(monkeypatch):
    monkeypatch.setenv("LORAKEET_COMPILE", "0")
    from lorakeet.machine.compiling import can_compile

    can_compile.cache_clear()
    yield
    can_compile.cache_clear()


@pytest.mark.parametrize(("name", "num_parameters"), [("Q05", 494_032_768), ("L1", 1_235_814_400), ("G270", 268_098_176)])
def test_shapes_are_those_of_the_real_models(name, num_parameters):
    with torch.device("meta"):
        model = CausalLM(config_from_json(workloads.SHAPES[name], name))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize("name", workloads.SHAPES)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_gates_hold_for_split_layers(name, rows, tmp_path, plain_python):
    make(tmp_path / "model", config_from_json(workloads.SHAPES[name] | SMALL | HEADS, name))
    targets = target_names(tmp_path / "model", "attention")
    assert targets == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert [gate.name for gate in check_gates(tmp_path / "model", rows, 4, targets, torch.float32) if not gate.holds] == []


def test_a_shape_has_goals_of_its_own():
    runs = {
        system: [{"tokens_per_second": speed, "peak_memory_bytes": memory}]
        for system, speed, memory in (("lorakeet", 160.0, 5.0), ("peft", 100.0, 10.0))
    }
    case = throughput.Case("G270", "r16-all-linear", Path("model"), Path("rows"), runs, rooflines=[1000.0])
    *_, speed, memory = throughput.goal_table([case]).splitlines()
    assert speed == "| G270 | r16-all-linear | ≥ 1.5× PEFT, tuned and compiled | 1.60× | reached |"
    assert memory == "| G270 | r16-all-linear | ≤ 40% of tuned PEFT's peak memory | 50% | **not reached** |"
    assert throughput.models_of([case], argparse.Namespace(model="demo")) == "random weights in the shape of Gemma-3-270m"
