"""Generation with a cache and in batches equals generation without, token for token, and ends where it must."""

import pytest
import torch
import transformers
from torch import nn

from lorakeet.errors import ConfigError, ModelError
from lorakeet.infer import engine
from lorakeet.infer.engine import Generation, generate
from lorakeet.infer.sampling import Sampling
from lorakeet.models.config import LongRope
from lorakeet.models.kv_cache import KVCache
from lorakeet.models.weights import load_model

NUM_TOKENS = 20


def test_cached_equals_uncached_token_for_token(model, prompts, uncached):
    answers = generate(model, prompts, stop_ids=(), max_new_tokens=NUM_TOKENS)
    expected = [uncached(model, prompt, NUM_TOKENS) for prompt in prompts]
    assert [answer.ids for answer in answers] == expected
    assert len({tuple(ids) for ids in expected}) == len(expected), "the models must tell the prompts apart"


def test_batched_equals_single(model, prompts):
    together = generate(model, prompts, stop_ids=(), max_new_tokens=NUM_TOKENS)
    alone = [generate(model, [prompt], stop_ids=(), max_new_tokens=NUM_TOKENS)[0] for prompt in prompts]
    assert together == alone


@pytest.mark.parametrize("length", [15, 16, 17])
def test_longrope_switch_is_crossed_where_the_reference_crosses_it(build, uncached, next_logits, length):
    model = build(rope_scaling=LongRope((1.0,) * 4, (1.0, 2.0, 5.0, 9.0), 1.0))
    prompt = [(7 * i + 3) % 64 for i in range(length)]
    assert generate(model, [prompt], stop_ids=(), max_new_tokens=5)[0].ids == uncached(model, prompt, 5)
    # The test would pass vacuously if the factors made no difference.
    longer = prompt + [1] * 5
    assert torch.allclose(next_logits(model, longer[:16]), next_logits(build(), longer[:16]), atol=1e-5)
    assert not torch.allclose(next_logits(model, longer), next_logits(build(), longer), atol=1e-2)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"sliding_window": 6},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 2.0, 5.0, 9.0]}},
    ],
    ids=["multi-head", "grouped-tied", "sliding-window", "longrope"],
)
def test_greedy_answers_match_transformers(tmp_path, small, prompts, changes):
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        **{**small, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.4, **changes}
    )
    theirs = transformers.Phi3ForCausalLM(config).float().eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype=torch.float32)

    num_tokens = NUM_TOKENS
    answers = generate(ours, prompts, stop_ids={2}, max_new_tokens=num_tokens)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            out = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=num_tokens,
            )
        expected = out[0, len(prompt) :].tolist()
        assert answer.ids == (expected[:-1] if expected[-1] == 2 else expected)


def test_stops_at_every_stop_id(build, prompts, uncached):
    model = build()
    for prompt in prompts[:4]:
        free = uncached(model, prompt, NUM_TOKENS)
        for at in (0, 3, 7):
            stop_ids = {free[at], 999}
            (answer,) = generate(model, [prompt], stop_ids=stop_ids, max_new_tokens=NUM_TOKENS)
            assert answer == Generation(free[: free.index(free[at])], "stop")


def test_limit_ends_the_answer(build, prompts):
    model = build()
    for limit in (1, 2, 11):
        answers = generate(model, prompts, stop_ids=(), max_new_tokens=limit)
        assert [(len(answer.ids), answer.stop_reason) for answer in answers] == [(limit, "length")] * len(prompts)


def test_answer_ends_where_the_context_is_full(build):
    prompt = [5] * 60
    (answer,) = generate(build(), [prompt], stop_ids=(), max_new_tokens=50)
    assert (len(answer.ids), answer.stop_reason) == (4, "length")


@pytest.mark.parametrize("prompt", [[], [5] * 64, [5] * 65])
def test_rejects_prompts_without_room(build, prompt):
    with pytest.raises(ConfigError, match=f"E-CFG-44 .* has {len(prompt)} tokens; the model's context holds 64"):
        generate(build(), [[1], prompt], stop_ids=(), max_new_tokens=1)


def test_rejects_a_limit_below_one(build):
    with pytest.raises(ConfigError, match=r"E-CFG-81 .*max_new_tokens is 0"):
        generate(build(), [[1]], stop_ids=(), max_new_tokens=0)


def test_small_budgets_give_the_same_answers(model, prompts, monkeypatch):
    many = prompts * 3
    free = generate(model, prompts, stop_ids=(), max_new_tokens=NUM_TOKENS)
    stop_ids = {free[2].ids[3]}
    expected = generate(model, many, stop_ids=stop_ids, max_new_tokens=NUM_TOKENS)
    assert len({len(answer.ids) for answer in expected}) > 1, "sequences must end at different times"
    monkeypatch.setattr(engine, "MAX_SEQUENCES", 5)
    monkeypatch.setattr(engine, "PROMPT_TOKENS", 20)
    assert generate(model, many, stop_ids=stop_ids, max_new_tokens=NUM_TOKENS) == expected
    one_row = KVCache.bytes_per_token(model.config, torch.float32) * 130
    monkeypatch.setattr(engine, "CACHE_BYTES", one_row)
    assert generate(model, many, stop_ids=stop_ids, max_new_tokens=NUM_TOKENS) == expected


def test_tokens_are_told_as_they_come(build, prompts):
    told = {index: [] for index in range(len(prompts))}
    answers = generate(
        build(), prompts, stop_ids={3}, max_new_tokens=NUM_TOKENS, on_token=lambda i, token: told[i].append(token)
    )
    assert [told[index] for index in range(len(prompts))] == [answer.ids for answer in answers]


def test_seed_gives_each_prompt_the_same_answer_in_any_company(build, prompts):
    model, sampling = build(), Sampling(temperature=1.5, top_p=0.95, seed=7)
    together = generate(model, prompts, stop_ids=(), max_new_tokens=8, sampling=sampling)
    again = generate(model, prompts, stop_ids=(), max_new_tokens=8, sampling=sampling)
    first = generate(model, prompts[:1], stop_ids=(), max_new_tokens=8, sampling=sampling)
    other = generate(model, prompts, stop_ids=(), max_new_tokens=8, sampling=Sampling(1.5, 0.95, seed=8))
    assert together == again
    assert first == together[:1]
    assert other != together


def test_no_module_stays_in_training_mode_and_each_gets_its_own_back(build):
    model = build()
    model.train()
    model.model.layers[0].eval()
    model.model.layers[1].mlp = nn.Sequential(model.model.layers[1].mlp, nn.Dropout(0.9))
    model.model.layers[1].mlp[1].train()
    modes = [module.training for module in model.modules()]
    first = generate(model, [[1, 2, 3]], stop_ids=(), max_new_tokens=8)
    assert [module.training for module in model.modules()] == modes
    assert generate(model, [[1, 2, 3]], stop_ids=(), max_new_tokens=8) == first


def test_refuses_logits_that_are_not_finite(build):
    model = build()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"E-MODEL-120 .*not finite"):
        generate(model, [[1, 2, 3]], stop_ids=(), max_new_tokens=2)


def test_bf16_answers_follow_their_own_uncached_logits(build, next_logits, prompts):
    """In bf16 ties and rounding may turn a choice; each chosen token must still be within rounding of the best."""
    model = build(dtype=torch.bfloat16)
    answers = generate(model, prompts, stop_ids=(), max_new_tokens=8)
    for prompt, answer in zip(prompts, answers, strict=True):
        for i, token in enumerate(answer.ids):
            logits = next_logits(model, prompt + answer.ids[:i]).float()
            assert logits[token] >= logits.max() - 0.05 * logits.std()


def test_compiled_layers_give_the_same_answers(build, prompts):
    from lorakeet.machine.compiling import can_compile

    if not can_compile():
        pytest.skip("no C++ compiler")
    model = build()
    expected = generate(model, prompts, stop_ids=(), max_new_tokens=6)
    model.compile_layers()
    assert generate(model, prompts, stop_ids=(), max_new_tokens=6) == expected
