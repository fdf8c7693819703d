"""Silent bugs 1, 16, 17, 20, 27 and 28, put back in by a patch at run time: each is caught.

Every test first shows that the unpatched code passes the same check.
"""

import copy

import peft
import pytest
import torch
import torch.utils.checkpoint
import transformers

from lorakeet.config import LoraConfig, TrainingConfig
from lorakeet.data.pack import pack
from lorakeet.errors import AdapterError, CheckpointError, TrainingError
from lorakeet.lora import adapter, layers, targets
from lorakeet.lora.adapter import load_adapter, save_adapter
from lorakeet.lora.inject import inject
from lorakeet.models.weights import load_model
from lorakeet.objectives.sft import packed_loss
from lorakeet.training import loop as trainer_module
from lorakeet.training.loop import Trainer, train_step
from lorakeet.training.optimizer import build_optimizer
from lorakeet.training.reporting import Reporters


def settings(**values):
    return TrainingConfig(
        **{
            "learning_rate": 1e-2,
            "eval_strategy": "no",
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "gradient_accumulation_steps": 2,
            "max_steps": 6,
            **values,
        }
    )


class Recorder:
    """Keeps every step's row, and the rate that the optimizer really has."""

    def __init__(self, trainer):
        self.trainer, self.rows, self.rates = trainer, [], []

    def step(self, row):
        self.rows.append(row.to_dict())
        self.rates.append(self.trainer.optimizer.param_groups[0]["lr"])

    def log(self, row):
        pass

    def close(self):
        pass


def trainable(model):
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


# 1: a mean of means over micro-batches


def gradients(make_model, examples, count, **options):
    """Return the gradient of one step over eight ragged rows in `count` micro-batches."""
    size = 8 // count
    batches = [pack(examples[i * size : (i + 1) * size]) for i in range(count)]
    model = make_model()
    train_step(model, batches, build_optimizer(model, settings()), 0, **options)
    return {name: param.grad.clone() for name, param in trainable(model).items()}


def apart(one, other):
    return max(((one[name] - other[name]).norm() / other[name].norm().clamp_min(1e-12)).item() for name in one)


def test_1_a_mean_of_means_is_found_by_cutting_the_same_step_otherwise(make_model, examples):
    truth = gradients(make_model, examples, 1)
    for count in (2, 4, 8):
        assert apart(gradients(make_model, examples, count), truth) < 1e-6
    total = sum(row.num_supervised_tokens for row in examples[:8])
    for count in (2, 4, 8):

        def mean(model, batch, count=count):
            return packed_loss(model, batch) / batch.num_supervised_tokens * total / count

        assert apart(gradients(make_model, examples, count, objective=mean), truth) > 1e-2


# 16: updates that round away


def test_16_adapters_in_bfloat16_are_refused_because_their_updates_round_away(make_model, examples, monkeypatch):
    def moves(trainer):
        """Tell which adapters two steps at 1e-5 have changed: B by the first one, A by the second."""
        before = {name: param.detach().clone() for name, param in trainer.named_params.items()}
        trainer.run(Reporters())
        return {name for name, param in trainer.named_params.items() if not torch.equal(param, before[name])}

    config = settings(learning_rate=1e-5, lr_scheduler_type="constant", max_steps=2)
    healthy = Trainer(make_model(torch.bfloat16), config, examples)
    assert moves(healthy) == healthy.named_params.keys()

    adopt = layers.MergeableLayer.adopt

    def adopt_in_the_bases_dtype(self, module, scaling):
        adopt(self, module, scaling)
        self.lora_A.data, self.lora_B.data = self.lora_A.data.bfloat16(), self.lora_B.data.bfloat16()

    monkeypatch.setattr(layers.MergeableLayer, "adopt", adopt_in_the_bases_dtype)
    with pytest.raises(TrainingError, match=r"E-TRAIN-16 .*lora_A trains in bfloat16, where small updates round away"):
        Trainer(make_model(torch.bfloat16), config, examples)

    # Without that check most of A stays where it is.
    model = make_model(torch.bfloat16)
    before = {name: param.detach().clone() for name, param in trainable(model).items() if "lora_A" in name}
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-5)
    for _ in range(2):
        train_step(model, [pack(examples[:8])], optimizer, 1.0)
    stayed = [(trainable(model)[name] == param).float().mean().item() for name, param in before.items()]
    assert min(stayed) > 0.5


# 17: no gradients


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's own hint, easily overlooked
def test_17_reentrant_checkpointing_over_a_frozen_base_is_stopped_at_the_first_step(make_model, examples):
    Trainer(make_model(), settings(max_steps=1), examples).run(Reporters())
    model = make_model()
    for layer in model.model.layers:
        forward = layer.forward
        layer.forward = lambda *args, forward=forward: torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=True)
    with pytest.raises(TrainingError, match=r"E-TRAIN-17 step 1 no gradient reaches any parameter"):
        Trainer(model, settings(max_steps=1), examples).run(Reporters())


def test_17_a_product_that_forgets_its_gradient_is_stopped_at_the_first_step(make_model, examples, monkeypatch):
    product = layers.add_lora
    monkeypatch.setattr(layers, "add_lora", lambda result, x, a, b, scaling: product(result, x, a, b.detach(), scaling))
    with pytest.raises(TrainingError, match=r"E-TRAIN-17 no gradient reaches 8 of 16 parameters: .*lora_B"):
        Trainer(make_model(), settings(max_steps=1), examples).run(Reporters())


# 20: a wrong scale


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.2,
    )
    transformers.Phi3ForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def beside_peft(base, folder, config):
    """Return how far our logits and those of PEFT with the adapter that we save are apart."""
    model = inject(load_model(base, dtype=torch.float32), config).eval()
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_" in name:
                param.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
        ids = torch.arange(3, 20)
        hidden = model(ids, torch.arange(len(ids)), torch.tensor([0, len(ids)], dtype=torch.int32))
        ours = model.lm_head(hidden)
        save_adapter(model, folder, config=config, base_model_name_or_path=str(base))
        plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(plain, folder).eval()(ids[None]).logits[0]
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT calls it
@pytest.mark.parametrize("use_rslora", [False, True])
def test_20_a_wrong_scale_is_found_beside_peft(base, tmp_path, monkeypatch, use_rslora):
    config = LoraConfig(r=4, lora_alpha=12, use_rslora=use_rslora)
    assert beside_peft(base, tmp_path / "adapter", config) < 1e-5
    scaled = targets.target_of

    def forgets_the_rank(path, config):
        target = scaled(path, config)
        return type(target)(path, target.r, target.lora_alpha, target.lora_alpha)

    for module in (targets, adapter):
        monkeypatch.setattr(module, "target_of", forgets_the_rank)
    assert beside_peft(base, tmp_path / "again", config) > 1e-2


def test_20_an_adapter_of_another_scale_does_not_load(make_model, tmp_path):
    model = make_model(r=4, lora_alpha=12)
    save_adapter(model, tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter")
    next(layer for layer in model.modules() if isinstance(layer, layers.MergeableLayer)).scaling *= 2
    with pytest.raises(AdapterError, match=r"E-ADPT-107 .*scales its update by 6, the adapter by 3"):
        load_adapter(model, tmp_path / "adapter")


# 27: a schedule that counts micro-batches


def rates(make_model, examples):
    config = settings(lr_scheduler_type="linear", warmup_steps=2, learning_rate=1.0)
    trainer = Trainer(make_model(), config, examples)
    recorder = Recorder(trainer)
    trainer.run(Reporters(recorder))
    assert [row["learning_rate"] for row in recorder.rows] == recorder.rates
    return recorder.rates


def test_27_a_schedule_stepped_by_micro_batch_leaves_the_golden_list(make_model, examples, monkeypatch):
    golden = [0, 0.5, 1.0, 0.75, 0.5, 0.25]
    assert rates(make_model, examples) == golden
    rate = trainer_module.learning_rate
    monkeypatch.setattr(trainer_module, "learning_rate", lambda step, total, config: rate(2 * step, total, config))
    assert rates(make_model, examples) != golden


# 28: an optimizer that is absent, partly absent, or ignored


@pytest.fixture
def halfway(make_model, examples):
    """Return a run's end, its state after three steps, and a way to end it from such a state."""
    kept = {}
    straight = Trainer(make_model(), settings(), examples)
    straight.run(Reporters(), lambda step: kept.update({step: copy.deepcopy(straight.state())}))

    def end_from(state):
        second = Trainer(make_model(), settings(), examples)
        second.load_state(state)
        second.run(Reporters())
        return all(torch.equal(param, second.named_params[name]) for name, param in straight.named_params.items())

    assert end_from(copy.deepcopy(kept[3]))
    return kept[3], end_from


@pytest.mark.parametrize("kind", ["exp_avg", "exp_avg_sq", "step"])
def test_28_each_part_of_the_optimizer_is_mandatory(halfway, kind):
    state, end_from = halfway
    for key in [key for key in state.moments if key.endswith(f"/{kind}")]:
        del state.moments[key]
    with pytest.raises(CheckpointError, match=r"E-CKPT-60 .*the optimizer's state has 32 of 48 tensors"):
        end_from(state)


def test_28_a_parameter_that_is_missing_stops(halfway):
    state, end_from = halfway
    state.params.popitem()
    with pytest.raises(CheckpointError, match="E-CKPT-66"):
        end_from(state)


@pytest.mark.parametrize("ignored", ["give_optimizer", "give_params"])
def test_28_a_part_that_is_read_and_ignored_ends_otherwise(halfway, monkeypatch, ignored):
    state, end_from = halfway
    monkeypatch.setattr(trainer_module, ignored, lambda *given: None)
    assert not end_from(state)
