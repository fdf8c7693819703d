"""The C++ step beside the decoder itself, for every kind of model, weight and adapter."""

import pytest
import torch
from torch import nn

from lorakeet.config import LoraConfig, QuantizationConfig
from lorakeet.infer.engine import Engine, Request
from lorakeet.infer.mode import evaluating
from lorakeet.infer.native_step import MOST_ROWS, SOURCE, NativeStep, handles
from lorakeet.lora.inject import inject, lora_layers
from lorakeet.lora.per_row import take_adapter
from lorakeet.machine.native_code import load_kernel
from lorakeet.quant.loading import quantize_weight, quantized_paths

needs_kernel = pytest.mark.skipif(load_kernel(SOURCE) is None, reason="no compiler, or a CPU without AVX2")
EXACT, QUANTISED = 1e-5, 1e-3
"""How far logits may be from the decoder's, by the largest: float32 sums in another order; activations in 15 bits and the
sixteen values in 13. bfloat16 activations are further by ten times."""
PROMPTS = [[5, 9, 2, 33, 17, 8, 41], [7], [11, 12, 13, 3], [60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]]
WIDE = {"hidden_size": 128, "intermediate_size": 192}
"""Widths that hold whole blocks of quantised weights."""


def both_logits(model, prompts=PROMPTS, adapters=None):
    """Read prompts, then compute the next step twice from the same cache: by the C++ step and by the decoder."""
    adapters = adapters or [None] * len(prompts)
    with evaluating(model):
        engine = Engine(model)
        for prompt, adapter in zip(prompts, adapters, strict=True):
            engine.submit(Request(prompt=prompt, stop_ids=(), max_new_tokens=4, adapter=adapter))
        engine.advance()
        ids, positions = [stream.ids[-1] for stream in engine.living], list(engine.cache.lengths)
        using = [stream.request.adapter for stream in engine.living]
        engine.cache.begin_step()
        assert engine.native_step is not None
        assert engine.native_step.takes(using)
        native = engine.native_step.logits(ids, engine.cache, using)
        kept = [layer.keys_MKNE.clone() for layer in engine.cache.layers]
        plain = engine._logits(ids, positions, using, torch.arange(len(ids) + 1), None).float()
        stored = zip(kept, engine.cache.layers, strict=True)
        key_error = max(float((ours - layer.keys_MKNE).abs().max()) for ours, layer in stored)
        engine.adapters.close()
    return native, plain, key_error


def assert_close(native, plain, key_error, relative):
    size = plain.abs().max().item()
    assert (native - plain).abs().max().item() <= relative * size
    assert key_error <= relative * 10


def quantized(model, **how):
    for path in quantized_paths(model):
        model.set_submodule(path, quantize_weight(model.get_submodule(path).weight.data, QuantizationConfig(**how)))
    return model


def adapted(model, seed, targets="all-linear"):
    inject(model, LoraConfig(r=4 + seed, lora_alpha=8, target_modules=targets))
    generator = torch.Generator().manual_seed(seed)
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=0.2, generator=generator)
    return model


@needs_kernel
def test_every_kind_of_model_has_the_decoders_logits(model):
    assert_close(*both_logits(model), relative=EXACT)


@needs_kernel
def test_heads_may_be_wider_than_the_hidden_state(build):
    assert_close(*both_logits(build(explicit_head_dim=16)), relative=EXACT)


@needs_kernel
@pytest.mark.parametrize("num_rows", [1, 2, 5, 8, 9, 16, MOST_ROWS[torch.float32]])
def test_any_number_of_rows(build, num_rows):
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(64, (1 + at % 50,), generator=generator).tolist() for at in range(num_rows)]
    assert_close(*both_logits(build(), prompts), relative=EXACT)


@needs_kernel
@pytest.mark.parametrize("is_bf16_exact", [True, False])
def test_float32_weights_are_halved_only_where_nothing_is_lost(build, is_bf16_exact):
    model = build()
    if is_bf16_exact:
        model = model.bfloat16().float()
    step = NativeStep.of(model)
    kinds = {layer.qkv.kind for layer in step._layers}
    assert kinds == ({1} if is_bf16_exact else {0})
    assert_close(*both_logits(model), relative=EXACT)


@needs_kernel
@pytest.mark.parametrize(
    "how",
    [
        {"load_in_4bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
        {"load_in_8bit": True},
    ],
    ids=["nf4", "fp4", "int8"],
)
def test_quantised_weights_are_those_that_dequantising_gives(build, how):
    assert_close(*both_logits(quantized(build(**WIDE), **how)), relative=QUANTISED)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_in_eight_bits_leaves_the_likeliest_tokens_exact(build, monkeypatch, dtype):
    monkeypatch.setattr("lorakeet.infer.native_step.CANDIDATES", 8)
    model = quantized(build(dtype, **WIDE), load_in_8bit=True)
    native, _, _ = both_logits(model)
    with monkeypatch.context() as patched:
        patched.setattr("lorakeet.infer.native_step._can_round_head", lambda model: False)
        exact, _, _ = both_logits(model)
    likeliest = exact.topk(8).indices
    torch.testing.assert_close(native.gather(1, likeliest), exact.gather(1, likeliest), rtol=0, atol=1e-5 * exact.abs().max())
    torch.testing.assert_close(native, exact, rtol=0, atol=0.02 * exact.abs().max())
    assert not torch.equal(native, exact)


@needs_kernel
def test_bf16_is_no_further_from_float32_than_the_decoder(build):
    model = build(torch.bfloat16)
    native, plain, _ = both_logits(model)
    _, exact, _ = both_logits(model.float())
    assert (native - exact).abs().max() <= (plain - exact).abs().max()


@needs_kernel
@pytest.mark.parametrize("how", [{}, {"load_in_4bit": True}], ids=["float32", "nf4"])
def test_each_row_has_its_own_adapter(build, how):
    adapters = [take_adapter(adapted(build(**WIDE), seed)) for seed in range(2)]
    only_some = take_adapter(adapted(build(**WIDE), 3, ["o_proj", "down_proj"]))
    model = quantized(build(**WIDE), **how) if how else build(**WIDE)
    native, plain, key_error = both_logits(model, adapters=[adapters[0], None, only_some, adapters[1]])
    assert_close(native, plain, key_error, relative=QUANTISED if how else EXACT)
    without, _, _ = both_logits(model)
    assert (native - without).abs().max() > 0.1


@needs_kernel
@pytest.mark.parametrize("how", [{}, {"load_in_4bit": True}], ids=["float32", "nf4"])
def test_the_models_own_adapter_counts(build, how):
    model = adapted(quantized(build(**WIDE), **how) if how else build(**WIDE), 1)
    assert_close(*both_logits(model), relative=QUANTISED if how else EXACT)


@needs_kernel
def test_greedy_answers_are_the_decoders(model, prompts, uncached):
    with evaluating(model):
        engine = Engine(model)
        streams = [engine.submit(Request(prompt=prompt, stop_ids=(), max_new_tokens=20)) for prompt in prompts]
        while engine.advance():
            pass
    assert engine.native_step is not None
    for stream, prompt in zip(streams, prompts, strict=True):
        assert stream.generation.ids == uncached(model, prompt, 20)


def test_what_it_does_not_know_is_left_to_the_decoder(build):
    assert handles(build())
    assert not handles(build(hidden_size=40))  # no multiple of a vector
    biased, normed, turned = build(), build(), build()
    biased.model.layers[1].mlp.down_proj.bias = nn.Parameter(torch.zeros(32))
    normed.model.layers[0].self_attn.q_norm = nn.LayerNorm(8)
    turned.lm_head = nn.Sequential(turned.lm_head)
    assert not any(handles(model) for model in (biased, normed, turned, nn.Linear(1, 1)))


def test_more_rows_than_it_takes_are_left_to_the_decoder(build, uncached, monkeypatch):
    monkeypatch.setitem(MOST_ROWS, torch.float32, 16)
    model = build()
    with evaluating(model):
        engine = Engine(model)
        streams = [engine.submit(Request(prompt=[1 + at], stop_ids=(), max_new_tokens=4)) for at in range(17)]
        while engine.advance():
            pass
    assert [stream.generation.ids for stream in streams] == [uncached(model, [1 + at], 4) for at in range(17)]


@needs_kernel
@pytest.mark.parametrize(
    ("how", "dtype"),
    [
        ({}, torch.float32),
        ({}, torch.bfloat16),
        ({"load_in_4bit": True}, torch.float32),
        ({"load_in_8bit": True}, torch.float32),
    ],
    ids=["float32", "bfloat16", "nf4", "int8"],
)
def test_a_row_has_the_same_logits_in_any_company_to_the_bit(build, how, dtype):
    """From 1 row on, with different adapters, each prompt read in a pass of its own."""
    num_rows = min(24, MOST_ROWS[dtype])
    adapters = [None, *(take_adapter(adapted(build(**WIDE), seed)) for seed in range(2))]
    model = quantized(build(dtype, **WIDE), **how) if how else build(dtype, **WIDE)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(64, (1 + at % 5,), generator=generator).tolist() for at in range(num_rows)]
    requests = [
        Request(prompt=prompt, stop_ids=(), max_new_tokens=num_rows + 1, adapter=adapters[at % 3])
        for at, prompt in enumerate(prompts)
    ]
    alone = [steps_of(model, [request])[0] for request in requests]
    together = steps_of(model, requests)
    for mine, others in zip(alone, together, strict=True):
        assert len(others) > 0
        for one, other in zip(mine, others, strict=False):
            assert torch.equal(one, other)


def steps_of(model, requests):
    """Let requests join a batch one by one with a step between; return the logits of each one's steps, until the last joins."""
    found = [[] for _ in requests]
    with evaluating(model):
        engine = Engine(model)
        assert engine.native_step is not None
        logits = engine.native_step.logits

        def noted(ids, cache, adapters):
            logits_BV = logits(ids, cache, adapters)
            for row, stream in enumerate(engine.living):
                found[requests.index(stream.request)].append(logits_BV[row])
            return logits_BV

        engine.native_step.logits = noted
        for request in requests:
            engine.submit(request)
            engine.advance()
            engine.advance()
        while len(requests) == 1 and engine.advance():
            pass
        engine.adapters.close()
    return found
