"""The loop: normalisation, precision, resume, and what must stop it."""

import copy

import pytest
import torch

from lorakeet.config import TrainingConfig
from lorakeet.data.conversation import Example
from lorakeet.data.pack import pack, recurring_size
from lorakeet.errors import TrainingError
from lorakeet.objectives.sft import pack_for, packed_loss
from lorakeet.training.loop import Trainer, check_gradients, num_steps, train_step
from lorakeet.training.optimizer import build_optimizer
from lorakeet.training.reporting import Reporters


class Recorder:
    def __init__(self):
        self.rows = []

    def step(self, row):
        pass

    def log(self, row):
        self.rows.append(row.to_dict())

    def close(self):
        pass


def trainable(model):
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def settings(**values):
    return TrainingConfig(**{"learning_rate": 1e-2, "logging_steps": 1, "eval_strategy": "no", **values})


def run(model, examples, held_out=(), **values):
    recorder = Recorder()
    trainer = Trainer(model, settings(**values), examples, held_out)
    trainer.run(Reporters(recorder))
    return trainer, recorder.rows


@pytest.mark.parametrize("split", [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_accumulation_weighs_every_supervised_token_the_same(make_model, examples, split):
    rows, (num_batches, size) = examples[:8], split
    model = make_model()
    total = sum(row.num_supervised_tokens for row in rows)
    (packed_loss(model, pack(rows)) / total).backward()
    truth = {name: param.grad.clone() for name, param in trainable(model).items()}
    batches = [pack(rows[i * size : (i + 1) * size]) for i in range(num_batches)]
    assert len({batch.num_supervised_tokens for batch in batches}) == num_batches
    optimizer = build_optimizer(model, settings())
    outcome = train_step(model, batches, optimizer, max_grad_norm=0)
    assert outcome.num_supervised_tokens == total
    for name, param in trainable(model).items():
        torch.testing.assert_close(param.grad, truth[name], rtol=1e-6, atol=1e-6 * truth[name].abs().max().item())


@pytest.fixture
def overlapping():
    """Rows with a common prompt, a conversation cut after each of its turns, one row twice, and one like no other."""
    prompt, talk = list(range(3, 33)), [*range(40, 58), *range(3, 20)]
    rows = [Example([*prompt, *tail], ((34, 30 + len(tail)),)) for tail in ([50, 51, 52, 53, 54], [50, 51, 52, 7, 8, 9])]
    rows += [Example(talk[:n], tuple((a, a + 4) for a in range(5, n - 4, 9))) for n in (12, 20, 35)]
    return [*rows, rows[0], Example([60, 59, 58, 57], ((1, 4),))]


@pytest.mark.parametrize("options", [{"share_prefixes": True}, {"fill_up": True}, {"share_prefixes": True, "fill_up": True}])
def test_sharing_beginnings_and_filling_up_change_nothing_that_is_learned(make_model, overlapping, options):
    results = []
    for batch in (pack(overlapping), pack(overlapping, **options)):
        model = make_model()
        model.model.embed_tokens.weight.requires_grad_()  # the filling looks a row up there
        with torch.no_grad():
            for name, param in trainable(model).items():
                if "lora_B" in name:
                    param.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
        loss = packed_loss(model, batch) / batch.num_supervised_tokens
        loss.backward()
        results.append((batch, loss, {name: param.grad for name, param in trainable(model).items()}))
    (plain, loss, grads), (packed, packed_loss_, packed_grads) = results
    length = len(packed.input_ids_T)
    assert length < 0.6 * len(plain.input_ids_T) if "share_prefixes" in options else length > len(plain.input_ids_T)
    assert recurring_size(length) == length or "fill_up" not in options
    assert packed.num_tokens == plain.num_tokens == len(plain.input_ids_T)
    assert packed.num_supervised_tokens == plain.num_supervised_tokens
    assert packed_loss_.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, grad in grads.items():
        assert ((packed_grads[name] - grad).norm() / grad.norm()).item() < 1e-5, name


@pytest.mark.parametrize(("lora", "shares"), [({}, True), ({"lora_dropout": 0.1}, False)])
def test_beginnings_are_shared_only_where_it_is_exact(make_model, overlapping, lora, shares):
    model = make_model(**lora).train()
    assert (len(pack_for(model, overlapping).input_ids_T) < pack(overlapping).num_tokens) == shares
    assert len(pack_for(model.eval(), overlapping).input_ids_T) < pack(overlapping).num_tokens


def test_the_loss_is_the_mean_over_supervised_tokens(make_model, examples):
    model = make_model()
    logits = torch.cat([model.lm_head(model(*_alone(row))) for row in examples[:4]])
    targets = torch.cat([_labels(row) for row in examples[:4]])
    truth = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100)
    outcome = train_step(model, [pack(examples[:4])], build_optimizer(model, settings()), 0)
    assert outcome.loss == pytest.approx(truth.item(), rel=1e-6)


def _alone(row):
    n = len(row.input_ids)
    return torch.tensor(row.input_ids), torch.arange(n), torch.tensor([0, n], dtype=torch.int32)


def _labels(row):
    labels = torch.full((len(row.input_ids),), -100)
    for start, end in row.spans:
        labels[start - 1 : end - 1] = torch.tensor(row.input_ids[start:end])
    return labels


def test_training_learns_and_reports_what_the_contract_names(make_model, examples):
    trainer, rows = run(make_model(), examples, examples[:4], num_train_epochs=4, eval_strategy="epoch")
    assert trainer.step == trainer.total_steps == 12
    logged, evaluations = [r for r in rows if "loss" in r], [r for r in rows if "eval_loss" in r]
    assert logged[-1]["loss"] < logged[0]["loss"] - 0.3
    assert [row["step"] for row in evaluations] == [0, 3, 6, 9, 12]
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    assert {
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "num_tokens",
        "num_supervised_tokens",
        "tokens_per_second",
        "elapsed_s",
        "peak_memory_bytes",
    } <= logged[0].keys()
    assert logged[-1]["num_tokens"] == 4 * sum(len(row.input_ids) for row in examples)
    assert logged[-1]["num_supervised_tokens"] == 4 * sum(row.num_supervised_tokens for row in examples)


def test_small_updates_do_not_round_away_over_a_bfloat16_base(make_model, examples):
    model = make_model(torch.bfloat16)
    before = {name: param.detach().clone() for name, param in trainable(model).items()}
    assert {param.dtype for param in before.values()} == {torch.float32}
    optimizer = build_optimizer(model, settings(learning_rate=1e-5))
    train_step(model, [pack(examples[:8])], optimizer, 1.0)
    assert all(not torch.equal(param, before[name]) for name, param in trainable(model).items() if "lora_B" in name)
    train_step(model, [pack(examples[:8])], optimizer, 1.0)
    assert all(not torch.equal(param, before[name]) for name, param in trainable(model).items() if "lora_A" in name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step(make_model, examples, value):
    model = make_model()
    trainer = Trainer(model, settings(), examples)
    with torch.no_grad():
        model.model.norm.weight[0] = value
    before = copy.deepcopy({name: param.detach() for name, param in trainable(model).items()})
    with pytest.raises(TrainingError, match=r"E-TRAIN-15 step 1 the loss is (nan|inf) .*rows\.jsonl:"):
        trainer.run(Reporters())
    assert trainer.step == 0
    assert all(torch.equal(param, before[name]) for name, param in trainable(model).items())


def test_a_gradient_that_is_not_finite_stops_before_the_step(make_model, examples):
    model = make_model()
    trainer = Trainer(model, settings(), examples)
    name, param = next(iter(trainer.named_params.items()))
    before = param.detach().clone()
    param.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingError, match=r"gradient norm is (nan|inf)"):
        trainer.run(Reporters())
    assert torch.equal(param, before), name


def test_a_parameter_without_gradient_is_named(make_model, examples):
    model = make_model()
    layer = model.model.layers[0].mlp.down_proj
    layer.forward = lambda x: torch.nn.functional.linear(x, layer.weight)
    with pytest.raises(TrainingError, match=r"E-TRAIN-17 .*2 of 16 .*layers\.0\.mlp\.down_proj\.lora_A"):
        run(model, examples)


def test_resuming_ends_bit_equal(make_model, examples):
    values = {"num_train_epochs": 3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}
    torch.manual_seed(7)
    straight, rows = run(make_model(lora_dropout=0.1), examples, **values)
    assert straight.total_steps == 12

    torch.manual_seed(7)
    first = Trainer(make_model(lora_dropout=0.1), settings(**values), examples)
    kept = {}

    def stop_at_five(step):
        if step == 5:
            kept["state"] = copy.deepcopy(first.state())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(Reporters(), stop_at_five)
    second = Trainer(make_model(lora_dropout=0.1), settings(**values), examples)
    torch.manual_seed(123)
    second.load_state(kept["state"])
    recorder = Recorder()
    second.run(Reporters(recorder))
    for name, param in straight.named_params.items():
        assert torch.equal(param, second.named_params[name]), name
    for name, moment in straight.state().moments.items():
        assert torch.equal(moment, second.state().moments[name]), name
    timeless = ("loss", "grad_norm", "learning_rate", "num_tokens", "num_supervised_tokens", "epoch", "step")
    assert [[row[key] for key in timeless] for row in recorder.rows] == [[row[key] for key in timeless] for row in rows[5:]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_train_epochs": 2}, (3, 6)),
        ({"num_train_epochs": 0.5}, (3, 2)),
        ({"max_steps": 7}, (3, 7)),
        ({"gradient_accumulation_steps": 2}, (2, 6)),
    ],
)
def test_steps_are_counted_as_the_field_counts_them(values, expected):
    assert num_steps(settings(**values), 24) == expected


def test_packing_fills_rows_and_learns_every_token_once_an_epoch(make_model, examples):
    values = {"packing": True, "max_length": 40, "per_device_train_batch_size": 2, "num_train_epochs": 2}
    trainer, rows = run(make_model(), examples, **values)
    assert sorted(i for row in trainer.rows for i in row) == list(range(24))
    assert all(sum(len(examples[i].input_ids) for i in row) <= 40 for row in trainer.rows)
    assert trainer.total_steps == 2 * -(-len(trainer.rows) // 2)
    assert trainer.total_steps < num_steps(settings(**values), 24)[1]
    assert rows[-1]["num_supervised_tokens"] == 2 * sum(row.num_supervised_tokens for row in examples)


def test_check_gradients_accepts_a_healthy_first_step(make_model, examples):
    model = make_model()
    (packed_loss(model, pack(examples[:4])) / 10).backward()
    check_gradients(trainable(model))
