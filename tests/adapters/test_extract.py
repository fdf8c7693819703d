"""Extracted adapters: what was merged comes back, norms and heads in full, and the error is the true one."""

import json

import peft
import pytest
import torch
import transformers

from lorakeet.adapters.adapter_file import read_adapter
from lorakeet.adapters.extract import extract
from lorakeet.cli.main import run
from lorakeet.errors import AdapterError
from tests.adapters.test_combine import loaded_logits, relative
from tests.exports.conftest import merge

PEFT_READS_A_RENAMED_NAME = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"


def tuned_logits(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([[(11 * i + 5) % 640 for i in range(40)]])).logits[0]


@pytest.mark.filterwarnings(PEFT_READS_A_RENAMED_NAME)
def test_a_merged_adapter_comes_back(base, adapter, tmp_path):
    directory = base()
    saved, _ = adapter(directory, target_modules=["qkv_proj", "down_proj"])
    tuned = merge(directory, saved, tmp_path / "merged").path
    made = extract(str(directory), str(tuned), tmp_path / "out", r=4)
    assert made.num_layers == 4
    assert made.error < 1e-5
    assert relative(loaded_logits(directory, made.directory), tuned_logits(tuned)) < 1e-5
    fields = json.loads((made.directory / "adapter_config.json").read_text())
    assert fields["target_modules"] == ["down_proj", "qkv_proj"]


@pytest.mark.filterwarnings(PEFT_READS_A_RENAMED_NAME)
def test_norms_and_head_that_changed_are_saved_in_full(base, tmp_path):
    directory = base()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    torch.manual_seed(3)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.25)
        model.model.embed_tokens.weight.add_(0.01)
        model.lm_head.weight.add_(torch.randn(640, 2) @ torch.randn(2, 32) * 0.1)
    model.save_pretrained(tmp_path / "tuned")
    made = extract(str(directory), str(tmp_path / "tuned"), tmp_path / "out", r=2)
    assert sorted(made.saved) == ["model.embed_tokens", "model.norm"]
    assert relative(loaded_logits(directory, made.directory), tuned_logits(tmp_path / "tuned")) < 1e-5


def test_the_error_is_what_the_rank_leaves_out(base, adapter, tmp_path):
    directory = base()
    saved, _ = adapter(directory)
    tuned = merge(directory, saved, tmp_path / "merged").path
    made = extract(str(directory), str(tuned), tmp_path / "out", r=2)
    whole, part = read_adapter(saved), read_adapter(made.directory)
    lost = total = 0.0
    for path, pair in whole.pairs.items():
        exact = pair.B_scaled @ pair.A
        lost += (exact - part.pairs[path].B_scaled @ part.pairs[path].A).square().sum().item()
        total += exact.square().sum().item()
    assert made.error == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert 0.01 < made.error <= made.worst_error < 1


def test_rejects_equal_models_other_shapes_and_tied_embeddings(base, adapter, tmp_path, capsys):
    directory = base(tie_word_embeddings=True)
    with pytest.raises(AdapterError, match=r"E-ADPT-234 .*equal to the base"):
        extract(str(directory), str(directory), tmp_path / "out", r=4)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.1)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(AdapterError, match=r"E-ADPT-235 .*model.embed_tokens.weight = lm_head.weight"):
        extract(str(directory), str(tmp_path / "tuned"), tmp_path / "out", r=4)
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    (tmp_path / "tuned" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert run(["extract", str(directory), str(tmp_path / "tuned"), "-o", str(tmp_path / "out")]) == 2
    assert "E-ADPT-235" in (said := capsys.readouterr().err)
    assert "rms_norm_eps" in said
    assert run(["extract", str(directory), "nowhere/at/all", "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("E-MODEL-1")
    assert not (tmp_path / "out").exists()


def test_command_line(base, adapter, tmp_path, capsys):
    directory = base()
    saved, _ = adapter(directory)
    tuned = merge(directory, saved, tmp_path / "merged").path
    assert run(["extract", str(directory), str(tuned), "--r", "3", "-o", str(tmp_path / "out")]) == 0
    assert "It lacks" in capsys.readouterr().out
    assert peft.PeftConfig.from_pretrained(tmp_path / "out").r == 3
