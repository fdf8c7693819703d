"""Training that starts from an adapter: its outputs first, its shape throughout, its hash in the run."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lorakeet import api
from lorakeet.cli import main
from lorakeet.errors import CheckpointError, ConfigError
from tests.cli import conftest as cli

own_cache, tiny_model_directory = cli.own_cache, cli.tiny_model_directory
ROWS = [
    {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"It is {i}."}]} for i in range(12)
]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


@pytest.fixture
def elsewhere(tiny_model_directory, tmp_path):
    """An adapter that PEFT made, with DoRA, of a rank that is not ours."""
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_directory)
    config = peft.LoraConfig(r=3, lora_alpha=7, use_dora=True, target_modules=["o_proj", "qkv_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def settings(directory, **values):
    return {"output_dir": str(directory), "max_steps": 2, "eval_strategy": "no", "bf16": False, "save_steps": 1, **values}


@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_from_the_adapter_and_resumes_with_it_alone(tiny_model_directory, rows, elsewhere, tmp_path):
    first = settings(tmp_path / "run", learning_rate=1e-12)
    run = api.train(str(tiny_model_directory), str(rows), training_config=first, adapter=elsewhere)
    before, after = (load_file(path / "adapter_model.safetensors") for path in (elsewhere, run.adapter_directory))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    config = run.config.peft_config
    assert (config.r, config.lora_alpha, config.use_dora) == (3, 7, True)
    longer = settings(tmp_path / "run", learning_rate=1e-12, max_steps=3)
    with pytest.raises(CheckpointError, match=r"E-CKPT-62 .* another adapter"):
        api.train(str(tiny_model_directory), str(rows), training_config=longer, peft_config=config.model_dump(), resume=True)
    shutil.copyfile(run.adapter_directory / "adapter_config.json", elsewhere / "adapter_config.json")
    with pytest.raises(CheckpointError, match=r"E-CKPT-62 .* another adapter"):
        api.train(config=run.config, resume=True)


@pytest.mark.filterwarnings("ignore")
def test_what_the_adapter_decides_cannot_be_asked_for_otherwise(tiny_model_directory, rows, elsewhere, tmp_path, capsys):
    flags = ["train", str(tiny_model_directory), str(rows), "--adapter", str(elsewhere), "-o", str(tmp_path / "run")]
    assert main.run([*flags, "--r", "8"]) == 2
    assert "E-CFG-173 peft_config.r is 8, and the adapter to start from has 3" in capsys.readouterr().err
    for key, value in (("init_lora_weights", "pissa"), ("target_modules", ["o_proj"]), ("use_dora", False)):
        with pytest.raises(ConfigError, match=rf"E-CFG-173 peft_config\.{key}"):
            api.train(
                str(tiny_model_directory),
                str(rows),
                training_config=settings(tmp_path / "run"),
                peft_config={key: value},
                adapter=elsewhere,
            )
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_update_resumes_to_the_bit(tiny_model_directory, rows, tmp_path):
    kinds = {"use_dora": True, "lora_dropout": 0.1, "trainable_token_indices": [5, 6], "modules_to_save": ["lm_head"]}

    def train(**more):
        training = settings(tmp_path / "run")
        run = api.train(str(tiny_model_directory), str(rows), training_config=training, peft_config=kinds, **more)
        return load_file(run.adapter_directory / "adapter_model.safetensors")

    straight = train()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000002")
    resumed = train(resume=True)
    assert {"lora_magnitude_vector", "trainable_tokens_delta"} <= {name.rpartition(".")[2] for name in straight}
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.filterwarnings("ignore")
def test_a_run_starts_with_the_directions_of_its_rows_and_resumes(tiny_model_directory, rows, tmp_path):
    """A learning rate of nothing leaves A as it began: orthonormal, and the same from the same rows."""
    lora = {"r": 3, "init_lora_weights": "eva", "eva_config": {"rho": 1.0}}
    tiny = {"learning_rate": 1e-12, "weight_decay": 0.0}
    first = api.train(str(tiny_model_directory), str(rows), training_config=settings(tmp_path / "a", **tiny), peft_config=lora)
    tensors = load_file(first.adapter_directory / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if ".lora_A." in name:
            torch.testing.assert_close(tensor @ tensor.T, torch.eye(3), rtol=0, atol=1e-4)
    saved = json.loads((first.adapter_directory / "adapter_config.json").read_text())
    assert (saved["init_lora_weights"], saved["eva_config"]) == (True, None)
    config = first.config.model_copy(
        update={"training_config": first.config.training_config.model_copy(update={"output_dir": str(tmp_path / "b")})}
    )
    assert config.peft_config.eva_config.rho == 1
    again = load_file(api.train(config=config).adapter_directory / "adapter_model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())
    api.train(config=first.config, resume=True)
