"""The loss of a model on packed batches: its noise, and an output head that has an adapter."""

import pytest
import torch

from lorakeet.config import LoraConfig
from lorakeet.data.conversation import Example
from lorakeet.data.pack import pack
from lorakeet.exports import drift
from lorakeet.infer.engine import generate
from lorakeet.lora.inject import inject
from lorakeet.models.config import DecoderConfig
from lorakeet.models.decoder import CausalLM
from lorakeet.objectives.sft import embedding_noise, pack_for, packed_loss

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXAMPLES = [Example(list(range(start, start + 12)), ((4, 12),), "") for start in (1, 20)]


def adapted(tied=False, **changes):
    """Build a model with an adapter on its output head that is not zero."""
    torch.manual_seed(0)
    model = CausalLM(DecoderConfig(**SIZES, tie_word_embeddings=tied))
    inject(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "qkv_proj"], **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    return model


def logits_of_all(model, example):
    ids = torch.tensor(example.input_ids)
    return model.lm_head(model(ids, torch.arange(len(ids)), torch.tensor([0, len(ids)], dtype=torch.int32)))


def plain_loss(model):
    """Sum the losses of all supervised tokens by PyTorch's own functions."""
    total = torch.zeros(())
    for example in EXAMPLES:
        logits, ids = logits_of_all(model, example), torch.tensor(example.input_ids)
        ((first, end),) = example.spans
        total = total + torch.nn.functional.cross_entropy(logits[first - 1 : end - 1], ids[first:end], reduction="sum")
    return total


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_on_the_head_counts_in_the_loss_and_gets_its_gradients(tied):
    model = adapted(tied)
    ours, truth = packed_loss(model, pack_for(model, EXAMPLES)), plain_loss(model)
    assert ours.item() == pytest.approx(truth.item(), rel=1e-5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for mine, theirs in zip(torch.autograd.grad(ours, trained), torch.autograd.grad(truth, trained), strict=True):
        assert (mine - theirs).norm() < 1e-5 * theirs.norm()


def test_dropout_on_the_heads_adapter_is_drawn_in_training_alone():
    model = adapted(target_modules=["lm_head"], lora_dropout=0.5)
    batch = pack_for(model, EXAMPLES)
    assert packed_loss(model, batch).item() != packed_loss(model, batch).item()
    model.eval()
    assert packed_loss(model, batch).item() == pytest.approx(plain_loss(model).item(), rel=1e-5)


def test_an_adapter_on_the_head_counts_in_generation_and_drift():
    model, prompt = adapted().eval(), [3, 7, 11]
    ids = list(prompt)
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(logits_of_all(model, Example(ids, (), ""))[-1].argmax()))
    (answer,) = generate(model, [prompt], stop_ids=(), max_new_tokens=8)
    assert answer.ids == ids[len(prompt) :]
    with torch.no_grad():
        torch.testing.assert_close(drift._logits(model, prompt), logits_of_all(model, Example(prompt, (), "")))


def test_the_noise_of_a_document_goes_by_its_own_length_and_by_nothing_else():
    torch.manual_seed(0)
    lengths, width, alpha = (4, 100, 25), 64, 5.0
    batch = pack([Example(list(range(n)), ((1, n),), "") for n in lengths])
    noise = embedding_noise(batch, width, alpha)
    assert noise.shape == (sum(lengths), width)
    for document, length in zip(noise.split(lengths), lengths, strict=True):
        size = alpha / (length * width) ** 0.5
        assert 0.97 * size < document.abs().max() <= size
        assert document.abs().mean().item() == pytest.approx(size / 2, rel=0.1)  # uniform
        assert abs(document.mean().item()) < 0.1 * size


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_of_examples_come_from_the_same_pass_and_change_nothing(smoothing):
    model = adapted()
    shared = [Example([*EXAMPLES[0].input_ids, 5, 9][:6] + [token] * 4, ((2, 4), (7, 10)), f"{token}") for token in (3, 8)]
    examples = [*EXAMPLES, *shared]
    batch, heard = pack_for(model, examples), []
    plain = packed_loss(model, batch, label_smoothing=smoothing)
    ours = packed_loss(model, batch, label_smoothing=smoothing, on_losses=heard.append)
    assert torch.equal(ours, plain)
    alone = [packed_loss(model, pack_for(model, [example]), label_smoothing=smoothing).item() for example in examples]
    (sums,) = heard
    assert sums.tolist() == pytest.approx(alone, rel=1e-4)
    with torch.no_grad():
        packed_loss(model, batch, label_smoothing=smoothing, on_losses=heard.append)
    assert torch.allclose(heard[1], sums)
