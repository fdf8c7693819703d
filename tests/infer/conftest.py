"""Small random Phi-3 models of every configuration kind, and generation without a cache: the slow truth."""

import pytest
import torch
import torch.nn.functional as F

from lorakeet.models.config import DecoderConfig, LongRope
from lorakeet.models.decoder import CausalLM

SWITCH = 16
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": SWITCH,
}
LONGROPE = LongRope((1.0, 1.1, 1.3, 1.6), (1.0, 2.0, 5.0, 9.0), 1.19)
KINDS = {
    "multi-head": {"num_key_value_heads": 4},
    "grouped-query": {},
    "partial-rotary": {"hidden_size": 64, "partial_rotary_factor": 0.75},
    "sliding-window": {"sliding_window": 5},
    "longrope": {"rope_scaling": LONGROPE},
    "longrope-window": {"rope_scaling": LONGROPE, "sliding_window": 7},
    "tied": {"tie_word_embeddings": True},
}


@pytest.fixture
def build():
    """Build a random model; its weights are large enough that different contexts give different tokens."""

    def build_model(dtype=torch.float32, **changes):
        torch.manual_seed(0)
        model = CausalLM(DecoderConfig(**{**SMALL, **changes})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.3)
        return model.to(dtype)

    return build_model


@pytest.fixture
def small():
    """The sizes of all these models."""
    return SMALL


@pytest.fixture(params=list(KINDS))
def model(request, build):
    """One model of each kind."""
    return build(**KINDS[request.param])


def _next_logits(model, ids):
    with torch.inference_mode():
        hidden = model(torch.tensor(ids), torch.arange(len(ids)), torch.tensor([0, len(ids)], dtype=torch.int32))
        return F.linear(hidden[-1], model.lm_head.weight)


@pytest.fixture
def next_logits():
    """Compute the next token's logits from the whole sequence, keeping nothing."""
    return _next_logits


@pytest.fixture
def uncached():
    """Generate greedily, each token by a pass over the whole sequence."""

    def generate(model, prompt, num_tokens, stop_ids=()):
        ids = list(prompt)
        for _ in range(num_tokens):
            token = int(_next_logits(model, ids).argmax())
            if token in stop_ids:
                break
            ids.append(token)
        return ids[len(prompt) :]

    return generate


@pytest.fixture
def prompts():
    """Prompts of many lengths, on both sides of the switch and one token long."""
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 3, 9, SWITCH - 2, SWITCH - 1, SWITCH, SWITCH + 1, 24]
    return [torch.randint(64, (length,), generator=generator).tolist() for length in lengths]
