"""Optimizers: the ones transformers builds by the same names, in LoRA+'s groups, and exact across save and resume."""

import sys

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import Phi3Config, Phi3ForCausalLM, Trainer, TrainingArguments

from lorakeet.config import TrainingConfig
from lorakeet.errors import ConfigError, MissingExtraError
from lorakeet.rundir.checkpoint import load_newest, save_checkpoint
from lorakeet.training import loop as trainer_module
from lorakeet.training.optimizer import build_optimizer, inference_weights, param_groups, set_learning_rate
from lorakeet.training.reporting import Reporters

TRANSFORMERS_NAMES = [
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "adafactor",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "schedule_free_adamw",
]
ALL_NAMES = [*TRANSFORMERS_NAMES, "lion"]


def settings(optim="adamw_torch", **values):
    schedule = "constant_with_warmup" if optim == "schedule_free_adamw" else "cosine"
    return TrainingConfig(
        **{
            "optim": optim,
            "lr_scheduler_type": schedule,
            "learning_rate": 1e-2,
            "warmup_steps": 2,
            "weight_decay": 0.1,
            "max_steps": 8,
            "per_device_train_batch_size": 3,
            "eval_strategy": "no",
            **values,
        }
    )


def make(make_model, examples, config, held_out=()):
    # r=128 makes matrices of 4,096 and more elements: from there on bitsandbytes keeps states of 8 bits.
    torch.manual_seed(7)
    return trainer_module.Trainer(make_model(r=128, lora_dropout=0.1), config, examples, held_out)


@pytest.mark.parametrize("name", TRANSFORMERS_NAMES)
def test_updates_match_the_optimizer_that_transformers_builds(name, tmp_path):
    config = settings(name)
    args = TrainingArguments(
        output_dir=str(tmp_path), optim=name, learning_rate=1e-2, weight_decay=0.1, report_to="none", use_cpu=True
    )
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(64, 96, generator=generator), torch.randn(8, 8, generator=generator)]
    mine = torch.nn.ParameterList([torch.nn.Parameter(value.clone()) for value in start])
    theirs = [torch.nn.Parameter(value.clone()) for value in start]
    options |= {"is_paged": False} if "is_paged" in options else {}
    optimizer, truth = build_optimizer(mine, config), kind(theirs, **{"weight_decay": 0.1, **options})
    if hasattr(truth, "train"):
        truth.train()
    for rate in (0.004, 0.01, 0.002):
        set_learning_rate(optimizer, rate)
        for group in truth.param_groups:
            group["lr"] = rate
        for one, other in zip(mine, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        optimizer.step()
        truth.step()
    for one, other, before in zip(mine, theirs, start, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        assert not torch.equal(one, before)
    quantised = any(
        value.dtype == torch.uint8
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    assert quantised == ("8bit" in name)


def test_lion_matches_its_definition():
    param, grad = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.ones(6, 5)
    module = torch.nn.ParameterList([torch.nn.Parameter(param.clone())])
    optimizer = build_optimizer(module, settings("lion", adam_beta2=0.99))
    set_learning_rate(optimizer, 0.01)
    module[0].grad = grad
    optimizer.step()
    torch.testing.assert_close(module[0], param * (1 - 0.01 * 0.1) - 0.01 * torch.sign(grad))
    torch.testing.assert_close(optimizer.state[module[0]]["exp_avg"], 0.01 * grad)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_resuming_ends_bit_equal(name, make_model, examples, tmp_path):
    config = settings(name, loraplus_lr_ratio=4.0)
    straight = make(make_model, examples, config)
    straight.run(Reporters())

    def save_at_three(step):
        if step == 3:
            save_checkpoint(tmp_path, first.state(), {}, keep=2)
            raise KeyboardInterrupt

    first = make(make_model, examples, config)
    with pytest.raises(KeyboardInterrupt):
        first.run(Reporters(), save_at_three)
    second = make(make_model, examples, config)
    torch.manual_seed(123)
    second.load_state(load_newest(tmp_path, {}, note=print)[1])
    second.run(Reporters())
    for field in ("params", "moments", "rng"):
        expected, found = getattr(straight.state(), field), getattr(second.state(), field)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert second.state().optimizer == straight.state().optimizer
    with straight.inference_weights(), second.inference_weights():
        assert all(torch.equal(second.named_params[key], value) for key, value in straight.named_params.items())


def test_schedule_free_evaluates_and_saves_its_average_and_trains_on_as_if_nothing_had_been(make_model, examples):
    config = settings("schedule_free_adamw", learning_rate=0.1)
    quiet = make(make_model, examples, config)
    quiet.run(Reporters())
    loud = make(make_model, examples, config)

    def look(step):
        trained = {name: param.detach().clone() for name, param in loud.named_params.items()}
        with loud.inference_weights():
            moved = [name for name, param in loud.named_params.items() if not torch.equal(param, trained[name])]
        assert step <= 2 or len(moved) == len(trained)
        assert all(torch.equal(param, trained[name]) for name, param in loud.named_params.items())

    loud.run(Reporters(), look)
    assert all(torch.equal(loud.named_params[name], param) for name, param in quiet.named_params.items())
    by_hand = {name: param.detach().clone() for name, param in quiet.named_params.items()}
    for param in quiet.named_params.values():
        z = quiet.optimizer.state[param]["z"]
        by_hand[next(n for n, p in quiet.named_params.items() if p is param)].lerp_(z, 1 - 1 / config.adam_beta1)
    with quiet.inference_weights():
        for name, param in quiet.named_params.items():
            torch.testing.assert_close(param, by_hand[name], rtol=0, atol=0)


def test_other_optimizers_use_the_weights_they_train(make_model, examples):
    trainer = make(make_model, examples, settings())
    before = {name: param.detach().clone() for name, param in trainer.named_params.items()}
    with inference_weights(trainer.optimizer):
        assert all(torch.equal(param, before[name]) for name, param in trainer.named_params.items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT calls it
def test_loraplus_groups_are_those_of_peft(make_model):
    """A and B of every layer, and a norm that trains along, learn as fast as PEFT has them learn."""
    torch.manual_seed(0)
    tiny = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=2,
            eos_token_id=2,
            bos_token_id=1,
        )
    )
    theirs = peft.get_peft_model(tiny, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    ours = make_model()
    for model in (ours, theirs):
        next(p for n, p in model.named_parameters() if n.endswith("model.norm.weight")).requires_grad_(True)
    truth = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1)
    groups = param_groups(ours, settings(learning_rate=1e-3, loraplus_lr_ratio=16.0))

    def table(model, groups):
        name_of = {
            p: n.removeprefix("base_model.model.").replace(".default.weight", "").replace(".base_layer", "")
            for n, p in model.named_parameters()
        }
        return {name_of[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}

    mine, expected = table(ours, groups), table(theirs, truth.param_groups)
    # PEFT knows no RMSNorm and lets it decay; transformers' Trainer does not, nor do we.
    assert (mine.pop("model.norm.weight"), expected.pop("model.norm.weight")) == ((0.016, 0.0), (0.016, 0.1))
    assert mine == expected
    assert len({group["lr"] for group in groups}) == 2


def test_loraplus_embeddings_have_a_rate_of_their_own(make_model):
    model = make_model(target_modules=["embed_tokens", "qkv_proj"])
    groups = param_groups(model, settings(learning_rate=1e-3, loraplus_lr_ratio=16.0))
    rates = {n: g["lr"] for g in groups for p in g["params"] for n, q in model.named_parameters() if p is q}
    embedding = {name: rate for name, rate in rates.items() if "embed_tokens" in name}
    assert len(embedding) == 2
    assert all(rate == pytest.approx(1e-6) for rate in embedding.values())


def test_every_group_follows_the_schedule_at_its_own_ratio(make_model):
    model = make_model()
    optimizer = build_optimizer(model, settings(loraplus_lr_ratio=16.0))
    set_learning_rate(optimizer, 0.5)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.5, 8.0]


def test_weight_decay_leaves_biases_and_norms_alone(make_model):
    model = make_model(bias="all")
    model.model.norm.weight.requires_grad_(True)
    for group in param_groups(model, settings()):
        assert {param.ndim > 1 for param in group["params"]} == {group["weight_decay"] == 0.1}


@pytest.mark.parametrize(
    ("name", "package"), [("lion", "lion_pytorch"), ("schedule_free_adamw", "schedulefree"), ("adamw_8bit", "bitsandbytes")]
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, make_model, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"E-EXTRA-41 optim: {name} needs .*lorakeet\[optimizers\]"):
        build_optimizer(make_model(), settings(name))


def test_bitsandbytes_is_refused_where_it_does_not_run(make_model):
    with pytest.raises(ConfigError, match=r'E-CFG-141 .*"adamw_8bit" does not run on meta.*Use adamw_torch'):
        build_optimizer(make_model().to("meta"), settings("adamw_8bit"))


def test_schedule_free_takes_no_schedule():
    with pytest.raises(ConfigError, match=r"E-CFG-142 .*follow.* linear.*constant"):
        settings("schedule_free_adamw", lr_scheduler_type="linear")
