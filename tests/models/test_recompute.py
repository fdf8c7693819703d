"""Recomputed layers give the numbers of layers that keep everything, to the bit, and keep less."""

import pytest
import torch
import torch._functorch.config as partitioner

from lorakeet.config import LoraConfig, TrainingConfig
from lorakeet.data.conversation import Example
from lorakeet.lora.inject import inject
from lorakeet.machine.compiling import can_compile
from lorakeet.models.config import DecoderConfig
from lorakeet.models.decoder import CausalLM
from lorakeet.models.recompute import CHEAP, recompute_activations
from lorakeet.objectives.sft import pack_for, packed_loss
from tests.compiler import uncompiled

CONFIG = DecoderConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    original_max_position_embeddings=128,
    eos_token_id=2,
    pad_token_id=2,
)
ROWS = [Example([(7 * i + n) % 58 + 3 for i in range(n)], ((2, n),), f"row {n}") for n in (9, 24, 17)]


def outcome(mode, *, compiled=False, dropout=0.0):
    """Return loss, gradients and the bytes that the forward pass keeps."""
    torch.manual_seed(0)
    model = CausalLM(CONFIG)
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim > 1:
                param.normal_(0, 0.2)
    inject(model, LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, init_lora_weights=False))
    model.train()
    recompute_activations(model, mode)
    if compiled:
        model.compile_layers()
    kept = {}

    def pack_tensor(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda tensor: tensor):
        loss = packed_loss(model, pack_for(model, ROWS))
    loss.backward()
    grads = {name: param.grad for name, param in model.named_parameters() if param.requires_grad}
    return loss.detach(), grads, sum(kept.values())


def assert_same(result, truth, tolerance=0.0):
    loss, grads, _ = result
    assert loss.item() == pytest.approx(truth[0].item(), rel=tolerance, abs=0)
    for name, grad in truth[1].items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(grads[name], grad, rtol=tolerance, atol=tolerance * grad.abs().max().item())


@pytest.fixture
def eager():
    with uncompiled():
        yield


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_changes_no_bit(mode, dropout):
    truth, result = outcome(None, dropout=dropout), outcome(mode, dropout=dropout)
    assert_same(result, truth)
    assert result[2] < 0.7 * truth[2]


@pytest.fixture
def own_options():
    """Return the compiler's options back."""
    before = {name: getattr(partitioner, name) for name in CHEAP}
    yield
    for name, value in before.items():
        setattr(partitioner, name, value)
    torch._dynamo.reset()


@pytest.mark.usefixtures("own_options")
@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiled_layers_recompute_too(dropout):
    # Each after another: what one run asks for is not kept for the next.
    outcome("selective", compiled=True, dropout=dropout)
    nothing, selective, full = (outcome(mode, compiled=True, dropout=dropout) for mode in (None, "selective", "full"))
    for result in (selective, full):
        assert_same(result, nothing, 1e-6)
    assert full[2] < 0.3 * nothing[2]
    assert full[2] < selective[2] < 0.9 * nothing[2]


def test_the_option_has_transformers_name():
    assert TrainingConfig().recompute is TrainingConfig(gradient_checkpointing=None).recompute is None
    assert TrainingConfig(gradient_checkpointing=True).recompute == "selective"
    assert TrainingConfig(gradient_checkpointing="selective").recompute == "selective"
    assert TrainingConfig(gradient_checkpointing="full").recompute == "full"
