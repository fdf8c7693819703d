"""`inspect` tells an adapter's rank, strength, origin, and who will take it."""

import json

import pytest
import torch

from lorakeet.adapters.inspection import inspect, norm_table
from lorakeet.cli.main import run
from lorakeet.lora.adapter import save_adapter
from lorakeet.lora.inject import lora_layers
from lorakeet.models import weights


def test_norms_are_those_of_the_updates(base, adapter):
    directory, live = adapter(base(), use_rslora=True, rank_pattern={"o_proj": 2})
    found = inspect(directory)
    assert found.ranks == {4: 6, 2: 2}
    for path, layer in lora_layers(live):
        assert found.norms[path] == pytest.approx(layer.delta_weight(torch.float64).norm().item(), rel=1e-6)
    assert found.num_parameters == sum(p.numel() for p in live.parameters() if p.requires_grad)
    assert (found.targets, found.dtypes) == (["down_proj", "gate_up_proj", "o_proj", "qkv_proj"], ["float32"])


def test_base_origin_and_untrained_layers_are_named(base, adapter, tmp_path, capsys):
    directory, live = adapter(base(), target_modules=["o_proj"])
    with torch.no_grad():
        live.model.layers[1].self_attn.o_proj.lora_B.zero_()
    extra = {"base_hash": weights.fingerprint(tmp_path / "base"), "step": 30}
    save_adapter(live, directory, base_model_name_or_path="some/base", extra=extra)
    found = inspect(directory)
    assert (found.base_name, found.base_hash, found.provenance) == ("some/base", extra["base_hash"], {"step": 30})
    assert found.untrained == ["model.layers.1.self_attn.o_proj"]
    assert run(["inspect", str(directory)]) == 0
    said = capsys.readouterr().out
    assert "some/base" in said
    assert "1 layer with an update of zero: model.layers.1.self_attn.o_proj" in said
    assert run(["inspect", str(directory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"] == {"4": 2}


def test_a_run_is_taken_for_its_adapter(base, adapter, tmp_path):
    directory, _ = adapter(base())
    run_directory = tmp_path / "run"
    run_directory.mkdir()
    directory.rename(run_directory / "adapter")
    assert inspect(run_directory).directory == run_directory / "adapter"


@pytest.mark.parametrize(
    ("changes", "program", "answer"),
    [
        ({}, "vLLM", "yes, with --max-lora-rank 8"),
        ({"r": 17}, "vLLM", "yes, with --max-lora-rank 32"),
        ({"use_rslora": True}, "vLLM", "yes, with --max-lora-rank 8"),
        ({"alpha_pattern": {"o_proj": 3}}, "vLLM", "only through lorakeet export --format vllm"),
        ({"modules_to_save": ["lm_head"]}, "vLLM", "no: it takes neither saved modules nor biases (lm_head.weight)"),
        ({"modules_to_save": ["lm_head"]}, "llama.cpp", "no: a GGUF adapter holds neither saved modules"),
        ({"target_modules": ["embed_tokens"]}, "vLLM", "no: its Phi-3 takes no update of model.embed_tokens"),
        ({}, "Ollama", "only merged"),
    ],
)
def test_consumers(base, adapter, changes, program, answer):
    directory, _ = adapter(base(), **changes)
    assert inspect(directory).accepted_by[program].startswith(answer)


def test_bad_inputs_are_one_line(base, adapter, tmp_path, capsys):
    directory, _ = adapter(base())
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text("model: demo\n")
    cases = [("nowhere", "E-ADPT-105"), ("half", "E-ADPT-105"), ("base", "E-ADPT-105")]
    tensors = (directory / "adapter_model.safetensors").read_bytes()
    (directory / "adapter_model.safetensors").write_bytes(tensors[:-50])
    capsys.readouterr()
    for name, code in [*cases, ("adapter", "E-ADPT-56")]:
        assert run(["inspect", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(code)
        assert said.count("\n") == 1


def test_a_rank_that_is_not_the_configurations_is_refused(base, adapter, capsys):
    directory, _ = adapter(base())
    fields = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**fields, "r": 8}))
    capsys.readouterr()
    assert run(["inspect", str(directory)]) == 2
    assert capsys.readouterr().err.startswith("E-ADPT-65")


def test_layers_stand_in_the_order_of_their_numbers():
    lines = norm_table({f"model.layers.{n}.mlp.down_proj": 1.0 for n in (0, 10, 2)} | {"lm_head": 2.0})
    assert [line.split()[0] for line in lines] == ["layer", "0", "2", "10", "lm_head"]
