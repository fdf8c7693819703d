"""The decoder, held against transformers' own Phi-3 for every configuration kind of the family."""

import pytest
import torch
import torch.nn.functional as F
import transformers

from lorakeet.models.config_file import config_from_json
from lorakeet.models.decoder import CausalLM

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LONGROPE = {
    "original_max_position_embeddings": 16,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.5, 3.5, 4.5]},
}
PARTIAL = {"hidden_size": 96, "partial_rotary_factor": 0.75}
KINDS = {
    "mini-4k": {"sliding_window": 11},
    "plain": {},
    "3.5-mini": LONGROPE,
    "medium": {"num_key_value_heads": 2},
    "phi-4": {"num_key_value_heads": 2, "rope_theta": 250_000.0},
    "Phi-4-mini": {
        **PARTIAL,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [1.5, 2, 3, 4, 5, 6]},
    },
}
LENGTHS = [16, 17, 5, 40]


def pair(kind, dtype=torch.float32):
    """Build transformers' model and ours with the same weights."""
    raw = {**SMALL, **KINDS[kind]}
    torch.manual_seed(0)
    theirs = transformers.Phi3ForCausalLM(transformers.Phi3Config(**raw, attn_implementation="eager"))
    with torch.no_grad():
        for param in theirs.parameters():
            param.normal_(0, 0.3 if param.ndim > 1 else 0.1).add_(1.0 if param.ndim == 1 else 0.0)
    ours = CausalLM(config_from_json({"model_type": "phi3", **raw}, kind))
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(dtype).eval(), ours.to(dtype).eval()


def documents():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 97, (n,), generator=generator) for n in LENGTHS]


def packed(docs):
    lengths = torch.tensor([len(doc) for doc in docs])
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return torch.cat(docs), torch.cat([torch.arange(len(doc)) for doc in docs]), cu_seqlens


def our_logits(model, docs):
    return F.linear(model(*packed(docs)), model.lm_head.weight)


def their_logits(model, docs):
    return torch.cat([model(doc[None]).logits[0] for doc in docs])


def loss_and_grads(logits, docs, model):
    loss = F.cross_entropy(logits.float(), torch.cat(docs).roll(-1))
    params = dict(model.named_parameters())
    return loss, dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_logits_and_gradients_match_transformers_alone(kind):
    theirs, ours = pair(kind)
    docs = documents()
    assert any(len(doc) > 16 for doc in docs)
    assert any(len(doc) <= 16 for doc in docs)
    expected, found = their_logits(theirs, docs), our_logits(ours, docs)
    assert relative(found, expected) < 1e-5
    _, expected_grads = loss_and_grads(expected, docs, theirs)
    _, found_grads = loss_and_grads(found, docs, ours)
    assert expected_grads.keys() == found_grads.keys()
    for name, grad in expected_grads.items():
        assert relative(found_grads[name], grad) < 1e-5, name


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_error_is_no_larger_than_transformers(kind):
    docs = documents()
    truth = their_logits(pair(kind)[0], docs)
    theirs, ours = pair(kind, torch.bfloat16)
    assert relative(our_logits(ours, docs).float(), truth) <= relative(their_logits(theirs, docs).float(), truth)


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_is_untouched_by_its_neighbours(kind):
    _, model = pair(kind)
    docs = documents()
    before = our_logits(model, docs).split(LENGTHS)
    changed = [*docs]
    changed[1] = (docs[1] + 7) % 97
    after = our_logits(model, changed).split(LENGTHS)
    assert not torch.equal(before[1], after[1])
    for i in (0, 2, 3):
        assert torch.equal(before[i], after[i])


def test_only_the_rows_asked_for_are_returned():
    _, model = pair("medium")
    docs = documents()
    rows = torch.tensor([3, 15, 20, 77])
    torch.testing.assert_close(model(*packed(docs), rows_S=rows), model(*packed(docs))[rows], rtol=1e-5, atol=1e-6)


def test_compiled_layers_match_plain_ones_without_a_compile_per_shape():
    _, model = pair("3.5-mini")
    docs = documents()
    plain = loss_and_grads(our_logits(model, docs), docs, model)
    shorter = [doc[:-3] for doc in docs[:3]]
    plain_shorter = our_logits(model, shorter)
    model.compile_layers()
    compiled = loss_and_grads(our_logits(model, docs), docs, model)
    torch._dynamo.config.error_on_recompile, before = True, torch._dynamo.config.error_on_recompile
    try:
        assert relative(our_logits(model, shorter), plain_shorter) < 1e-5
    finally:
        torch._dynamo.config.error_on_recompile = before
    assert compiled[0].item() == pytest.approx(plain[0].item(), rel=1e-6)
    for name, grad in plain[1].items():
        assert relative(compiled[1][name], grad) < 1e-5, name
