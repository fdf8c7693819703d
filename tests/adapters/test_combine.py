"""Combined adapters: PEFT computes with them what the sum of the updates gives, and what is cut is told truly."""

import json
import shutil

import peft
import pytest
import torch
import transformers

from lorakeet.adapters.adapter_file import read_adapter
from lorakeet.adapters.combine import combine
from lorakeet.cli.main import run
from lorakeet.errors import AdapterError, ConfigError

IDS = [(11 * i + 5) % 640 for i in range(40)]


@pytest.fixture
def two(base, adapter, tmp_path):
    """Two adapters of one base: another rank, other layers, rsLoRA and a pattern."""
    directory = base()
    one = shutil.move(adapter(directory)[0], tmp_path / "one")
    changes = {"r": 3, "use_rslora": True, "alpha_pattern": {"down_proj": 5}, "rank_pattern": {"layers.1.mlp.down_proj": 2}}
    two, _ = adapter(directory, target_modules=["qkv_proj", "down_proj"], **changes)
    return directory, one, shutil.move(two, tmp_path / "two")


def their_logits(base, *adapters):
    """Compute PEFT's logits with the updates of all adapters in the weights, each with its weight."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = {name: weight.clone() for name, weight in model.state_dict().items()}
    total = {name: torch.zeros_like(weight) for name, weight in plain.items()}
    for directory, factor in adapters:
        tuned = peft.PeftModel.from_pretrained(model, directory).merge_and_unload()
        for name, weight in tuned.state_dict().items():
            total[name] += factor * (weight - plain[name])
        model.load_state_dict(plain)
    model.load_state_dict({name: weight + total[name] for name, weight in plain.items()})
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0]


def loaded_logits(base, adapter):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.inference_mode():
        return peft.PeftModel.from_pretrained(model, adapter).eval()(torch.tensor([IDS])).logits[0]


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_side_by_side_is_the_exact_sum_in_peft(two, tmp_path):
    base, one, other = two
    shutil.copy(base / "tokenizer.json", one)
    made = combine([one, other], tmp_path / "both", weights=[0.5, -2])
    assert (made.r, made.error) == (7, 0)
    expected = their_logits(base, (one, 0.5), (other, -2))
    assert relative(loaded_logits(base, made.directory), expected) < 1e-5
    assert relative(loaded_logits(base, one), expected) > 0.05
    fields = json.loads((made.directory / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"], fields["rank_pattern"]) == (7, 7, {})
    assert fields["target_modules"] == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    assert (made.directory / "tokenizer.json").is_file()


def test_a_smaller_rank_loses_what_it_says(two, tmp_path):
    _, one, other = two
    whole = read_adapter(combine([one, other], tmp_path / "both").directory)
    made = combine([one, other], tmp_path / "cut", r=4)
    cut = read_adapter(made.directory)
    lost = total = 0.0
    for path, pair in whole.pairs.items():
        exact, found = pair.B_scaled.double() @ pair.A.double(), cut.pairs[path].B_scaled.double() @ cut.pairs[path].A.double()
        best = torch.linalg.svdvals(exact)[4:].square().sum()
        assert (exact - found).square().sum().item() == pytest.approx(best.item(), rel=1e-3, abs=1e-9)
        lost, total = lost + (exact - found).square().sum().item(), total + exact.square().sum().item()
    assert made.r == 4
    assert made.error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert 0 < made.error <= made.worst_error < 1


def test_an_adapter_combined_with_its_negative_is_nothing(two, tmp_path):
    _, one, _ = two
    made = combine([one, one], tmp_path / "none", weights=[1, -1], r=4)
    assert all(pair.norm() < 1e-4 for pair in read_adapter(made.directory).pairs.values())


def test_rejects_what_cannot_be_added(two, base, adapter, tmp_path):
    directory, one, other = two
    saved, _ = adapter(directory, modules_to_save=["lm_head"])
    out = tmp_path / "out"
    with pytest.raises(AdapterError, match=r"E-ADPT-230 .*lm_head.weight"):
        combine([one, saved], out)
    with_lengths, _ = adapter(directory, use_dora=True)
    with pytest.raises(AdapterError, match=r"E-ADPT-230 .*trained lengths \(DoRA\)"):
        combine([one, with_lengths], out)
    with pytest.raises(AdapterError, match=r"E-ADPT-232 --weights 1 weights for 2"):
        combine([one, other], out, weights=[1])
    with pytest.raises(AdapterError, match="E-ADPT-232"):
        combine([one, other], out, weights=[1, float("nan")])
    with pytest.raises(ConfigError, match="E-CFG-37 --r is 0"):
        combine([one, other], out, r=0)
    with pytest.raises(ConfigError, match="E-CFG-48"):
        combine([one, other], one)
    shutil.rmtree(directory)
    shutil.rmtree(saved)
    third, _ = adapter(base(hidden_size=64))
    with pytest.raises(AdapterError, match="E-ADPT-64"):
        combine([one, third], out)
    with pytest.raises(AdapterError, match=r"E-ADPT-105 .*no directory"):
        combine([one, tmp_path / "nowhere"], out)
    assert not out.exists()


def test_command_lines(two, tmp_path, capsys):
    _, one, other = two
    assert run(["combine", str(one), str(other), "--weights", "1,0.5", "-o", str(tmp_path / "both")]) == 0
    assert "8 layers of rank 7" in (said := capsys.readouterr().out)
    assert "exact" in said
    assert run(["combine", str(one), str(other), "--r", "2", "-o", str(tmp_path / "cut"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["r"] == 2
    assert run(["combine", str(one), str(other), "--weights", "1;2", "-o", str(tmp_path / "no")]) == 2
    assert 'E-ADPT-232 --weights "1;2" is no list of numbers' in capsys.readouterr().err
