"""Label smoothing, NEFTune and clipping as the loop applies them."""

import copy
from functools import partial

import pytest
import torch
from transformers.integrations.neftune import neftune_post_forward_hook

from lorakeet.config import TrainingConfig
from lorakeet.data.conversation import Example
from lorakeet.data.pack import pack
from lorakeet.evaluation.perplexity import evaluate_loss
from lorakeet.objectives.sft import pack_for, packed_loss
from lorakeet.training.loop import Trainer, train_step
from lorakeet.training.optimizer import build_optimizer
from lorakeet.training.reporting import Reporters


def settings(**values):
    return TrainingConfig(**{"learning_rate": 1e-2, "max_steps": 6, "eval_strategy": "no", **values})


def grads(model):
    return {name: param.grad for name, param in model.named_parameters() if param.requires_grad}


def test_smoothed_training_matches_pytorchs_loss_over_whole_logits(make_model, examples):
    model = make_model()
    batch = pack(examples[:4])
    outcome = train_step(
        model, [batch], build_optimizer(model, settings()), 0, objective=partial(packed_loss, label_smoothing=0.2)
    )
    found = {name: grad.clone() for name, grad in grads(model).items()}
    truth = make_model()
    hidden = truth(batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens)[batch.supervised_S]
    loss = torch.nn.functional.cross_entropy(truth.lm_head(hidden), batch.targets_S, label_smoothing=0.2)
    loss.backward()
    assert outcome.loss == pytest.approx(loss.item(), rel=1e-6)
    for name, grad in grads(truth).items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-5 * grad.abs().max().item())


def test_evaluation_neither_smooths_nor_adds_noise(make_model, examples):
    plain, both = make_model(), make_model()
    rows = []

    class Recorder:
        def step(self, row): ...
        def log(self, row):
            rows.append(row.to_dict())

        def close(self): ...

    options = {"label_smoothing_factor": 0.5, "neftune_noise_alpha": 50.0, "eval_strategy": "epoch"}
    Trainer(both, settings(**options), examples[:8], examples[8:12]).run(Reporters(Recorder()))
    assert rows[0]["eval_loss"] == evaluate_loss(plain, examples[8:12]).loss
    assert rows[-1]["eval_loss"] == evaluate_loss(both, examples[8:12]).loss


def test_noise_matches_the_hook_of_transformers(make_model, monkeypatch):
    """One document: what we draw, scaled as their hook scales it, gives the same hidden states and loss."""
    model, example = make_model().train(), Example(list(range(3, 33)), ((2, 30),), "")
    batch = pack([example])
    unit = torch.rand(30, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "rand", lambda *size, device: unit)
    ours = packed_loss(model, batch, noise_alpha=7.0)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.copy_(unit * (high - low) + low))
    model.model.embed_tokens.neftune_noise_alpha = 7.0

    def hook(module, args, output):
        return neftune_post_forward_hook(module, args, output[None])[0]

    model.model.embed_tokens.register_forward_hook(hook)
    assert ours.item() == pytest.approx(packed_loss(model, batch).item(), rel=1e-6)
    model.eval()
    assert ours.item() != pytest.approx(packed_loss(model, batch).item(), rel=1e-4)


def test_noise_is_never_shared_between_documents(make_model):
    prompt = list(range(3, 40))
    rows = [Example([*prompt, *tail], ((38, 40),)) for tail in ([50, 51, 52], [53, 54, 55])]
    model = make_model().train()
    assert len(pack_for(model, rows).input_ids_T) < 80
    assert len(pack_for(model, rows, is_noisy=True).input_ids_T) == 80
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((len(args[0]), kwargs["noise_TD"])), with_kwargs=True
    )
    Trainer(model, settings(neftune_noise_alpha=5.0, max_steps=1), rows).run(Reporters())
    ((length, noise),) = seen
    assert length == 80
    assert not torch.equal(noise[:40], noise[40:])


def test_noisy_and_smoothed_training_resumes_bit_equal(make_model, examples):
    config = settings(
        neftune_noise_alpha=5.0, label_smoothing_factor=0.1, per_device_train_batch_size=3, gradient_accumulation_steps=2
    )
    torch.manual_seed(7)
    straight = Trainer(make_model(), config, examples)
    straight.run(Reporters())
    kept = {}

    def stop(step):
        if step == 2:
            kept["state"] = copy.deepcopy(first.state())
            raise KeyboardInterrupt

    torch.manual_seed(7)
    first = Trainer(make_model(), config, examples)
    with pytest.raises(KeyboardInterrupt):
        first.run(Reporters(), stop)
    second = Trainer(make_model(), config, examples)
    torch.manual_seed(123)
    second.load_state(kept["state"])
    second.run(Reporters())
    assert all(torch.equal(second.named_params[name], param) for name, param in straight.named_params.items())
    quiet = Trainer(make_model(), settings(per_device_train_batch_size=3, gradient_accumulation_steps=2), examples)
    quiet.run(Reporters())
    assert any(not torch.equal(quiet.named_params[name], param) for name, param in straight.named_params.items())


@pytest.mark.parametrize("limit", [0.0, 0.01, 1e6])
def test_clipping_scales_the_whole_gradient_and_0_leaves_it_alone(make_model, examples, limit):
    batch = pack(examples[:4])
    model, clipped = make_model(), make_model()
    (packed_loss(model, batch) / batch.num_supervised_tokens).backward()
    norm = torch.cat([grad.flatten() for grad in grads(model).values()]).norm()
    outcome = train_step(clipped, [batch], build_optimizer(clipped, settings()), limit)
    assert outcome.grad_norm == pytest.approx(norm.item(), rel=1e-5)  # as it was before clipping
    scale = min(1.0, limit / norm.item()) if limit else 1.0
    for name, grad in grads(model).items():
        torch.testing.assert_close(grads(clipped)[name], grad * scale, rtol=1e-4, atol=1e-9)


def test_weight_decay_pulls_towards_zero_by_rate_times_decay(make_model, examples):
    """With no other force on it, a decayed matrix shrinks by learning_rate × weight_decay a step."""
    model = make_model()
    optimizer = build_optimizer(model, settings(weight_decay=0.5, learning_rate=0.1))
    before = {name: param.detach().clone() for name, param in model.named_parameters() if param.requires_grad}
    for param in model.parameters():
        param.grad = torch.zeros_like(param) if param.requires_grad else None
    optimizer.step()
    for name, param in model.named_parameters():
        if name in before:
            torch.testing.assert_close(param, before[name] * (1 - 0.1 * 0.5))
