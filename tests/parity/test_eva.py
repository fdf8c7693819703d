"""EVA: PEFT's directions on the same rows, its training after them, and files that either side reads."""

import peft
import pytest
import torch
from peft.tuners.lora.eva import get_eva_state_dict, initialize_lora_eva_weights

from lorakeet.config import LoraConfig, RunConfig
from lorakeet.data.order import iterate_steps
from lorakeet.errors import ConfigError
from lorakeet.lora.adapter import load_adapter, save_adapter
from lorakeet.lora.inject import inject, trained_updates
from lorakeet.lora.starts import eva
from lorakeet.objectives.sft import pack_for
from lorakeet.quant.layers import Linear4bit
from lorakeet.training.eva import directions_on
from lorakeet.training.loop import train_step
from lorakeet.training.optimizer import build_optimizer
from tests.parity.test_split_projections import IDS, llama, logits, ours, relative
from tests.parity.test_trainer_trajectory import collate
from tests.training.tiny import ragged_rows

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SETTINGS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "seed": 3, "learning_rate": 1e-2}


def run_config(**eva_config):
    lora = {"r": 4, "lora_alpha": 8, "init_lora_weights": "eva", "eva_config": {"rho": 1.0, **eva_config}}
    training = {**SETTINGS, "weight_decay": 0.0, "lr_scheduler_type": "constant"}
    return RunConfig(model="base", data="rows.jsonl", peft_config=lora, training_config=training)


def steps():
    """The steps of a run, each as the rows that PEFT's loader would bring at once."""
    return [step for (step,) in iterate_steps(ragged_rows(), batch_size=8, grad_accum_steps=1, seed=3, max_steps=256)]


def batches():
    return [collate([{"ids": row.input_ids, "spans": row.spans} for row in step]) for step in steps()]


def peft_config(**eva_config):
    settings = peft.EvaConfig(rho=1.0, **eva_config)
    return peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=NAMES, init_lora_weights="eva", eva_config=settings, task_type="CAUSAL_LM"
    )


def theirs(**eva_config):
    """PEFT's model, started on the same rows."""
    model = peft.get_peft_model(llama(), peft_config(**eva_config))
    initialize_lora_eva_weights(model, batches(), show_progress_bar=False)
    return model


def started(**eva_config):
    """Our model, started on the run's rows."""
    model, config = ours(), run_config(**eva_config)
    return inject(model, config.peft_config, input_directions=directions_on(model, config, ragged_rows()))


def require_start(model, expected):
    """Require A as PEFT has it, by path, and B at zero."""
    updates = dict(trained_updates(model))
    assert updates.keys() == expected.keys()
    for path, update in updates.items():
        assert update.lora_B.abs().max() == 0
        torch.testing.assert_close(update.lora_A.detach(), expected[path].float(), rtol=1e-3, atol=1e-4)


def test_all_tokens_and_another_limit_are_looked_at_as_pefts():
    options = {"use_label_mask": False, "tau": 0.97}
    expected = get_eva_state_dict(llama(), batches(), peft_config(**options), show_progress_bar=False)
    require_start(started(**options), expected)


def test_training_goes_as_pefts_does(tmp_path):
    model, other = started(), theirs()
    layers = {
        name.removeprefix("base_model.model."): layer for name, layer in other.named_modules() if hasattr(layer, "lora_A")
    }
    require_start(model, {name: layer.lora_A["default"].weight.detach() for name, layer in layers.items()})
    assert relative(logits(model), logits(ours())) < 1e-6
    optimizer = build_optimizer(model.train(), run_config().training_config)
    params = [parameter for parameter in other.train().parameters() if parameter.requires_grad]
    other_optimizer = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.0)
    losses = []
    for step in steps()[:8]:
        outcome = train_step(model, [pack_for(model, step)], optimizer, 0.0)
        loss = other(**collate([{"ids": row.input_ids, "spans": row.spans} for row in step])).loss
        other_optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, float("inf")).item()
        losses.append(outcome.loss)
        assert (outcome.loss, outcome.grad_norm) == pytest.approx((loss.item(), norm), rel=1e-3)
        other_optimizer.step()
    assert losses[-1] < losses[0] - 0.01
    expected = other.eval()(IDS[None]).logits[0]
    assert relative(logits(model.eval()), expected) < 1e-3
    save_adapter(model, tmp_path / "ours")
    there = peft.PeftModel.from_pretrained(llama(), tmp_path / "ours").eval()
    assert relative(there(IDS[None]).logits[0], logits(model)) < 1e-5
    other.save_pretrained(tmp_path / "theirs")
    here = ours()
    assert load_adapter(here, tmp_path / "theirs").init_lora_weights is True
    assert relative(logits(here), expected) < 1e-5


def test_the_order_of_a_step_and_how_it_is_cut_changes_nothing():
    config = run_config()
    whole = config.training_config.model_copy(update={"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1})
    one = directions_on(ours(), config, ragged_rows())
    other = directions_on(ours(), config.model_copy(update={"training_config": whole}), ragged_rows())
    assert all(torch.equal(one[path], other[path]) for path in one)
    fresh = run_config().peft_config.model_copy(update={"init_lora_weights": True})
    assert directions_on(ours(), config.model_copy(update={"peft_config": fresh}), ragged_rows()) is None


def test_quantised_layers_start_likewise():
    torch.manual_seed(0)
    model = torch.nn.Sequential(Linear4bit.quantize(torch.randn(64, 64)))
    config = LoraConfig(r=3, target_modules=["0"], init_lora_weights="eva", eva_config={"rho": 1.0})
    rows = torch.randn(500, 64) * torch.tensor([90.0, 50.0, 20.0] + 61 * [0.1])
    passes = [(None, lambda part=part: model(part)) for part in rows.split(100)]
    inject(model, config, input_directions=eva.input_directions(model, config, passes))
    assert torch.allclose(model[0].lora_A[:, :3].abs(), torch.eye(3), atol=0.1)


def test_what_cannot_start_so_is_refused(caplog):
    with pytest.raises(ConfigError, match=r"E-CFG-108 peft_config\.eva_config\.rho .*moves ranks"):
        LoraConfig(init_lora_weights="eva")
    with pytest.raises(ConfigError, match=r"E-CFG-108 peft_config\.eva_config\.rho"):
        LoraConfig(init_lora_weights="eva", eva_config={"rho": 2.0})
    with pytest.raises(ConfigError, match=r"E-CFG-108 peft_config\.eva_config .*alone"):
        LoraConfig(eva_config={"rho": 1.0})
    with pytest.raises(ConfigError, match=r'E-CFG-31 peft_config\.eva_config unknown key "taw"'):
        LoraConfig(init_lora_weights="eva", eva_config={"taw": 1.0})
    with pytest.raises(ConfigError, match=r"E-CFG-108 peft_config\.eva_config\.whiten"):
        LoraConfig(init_lora_weights="eva", eva_config={"rho": 1.0, "whiten": True})
    with pytest.raises(ConfigError, match="E-CFG-172 inject"):
        inject(ours(), run_config().peft_config)
    few = [row for row in ragged_rows() if len(row.input_ids) < 6][:1]
    with pytest.raises(ConfigError, match=r"E-CFG-172 .*needs 20 tokens"):
        directions_on(ours(), wide(r=20), few)
    with pytest.raises(ConfigError, match="more than the 32 inputs"):
        directions_on(ours(), wide(r=33), ragged_rows())
    with pytest.raises(ConfigError, match="embed_tokens is none"):
        directions_on(ours(), wide(target_modules=["embed_tokens"]), ragged_rows())
    model, config = ours(), run_config(tau=0.9999999)
    passes = [(None, lambda: model(IDS, torch.arange(37), torch.tensor([0, 37], dtype=torch.int32)))]
    eva.input_directions(model, config.peft_config, passes)
    assert "8 layers" not in caplog.text
    assert "14 layers, such as model.layers.0.self_attn.q_proj, have not settled" in caplog.text


def wide(**lora):
    config = run_config()
    return config.model_copy(update={"peft_config": config.peft_config.model_copy(update=lora)})
