"""An engine that is fed: requests join and leave, adapters and prefixes stay apart, company changes no answer."""

import pytest
import torch

import lorakeet as lora
from lorakeet.errors import AdapterError, ModelError
from lorakeet.infer.engine import Engine, Request, generate
from lorakeet.infer.mode import evaluating
from lorakeet.infer.sampling import Sampling
from lorakeet.lora.inject import lora_layers
from lorakeet.lora.per_row import read_adapter

NUM_TOKENS = 12


@pytest.fixture
def save_adapter(build, tmp_path):
    """Write an adapter of random values for the model that `build` makes; returns its directory."""

    def save(name, seed, **config):
        model = lora.inject(build(), lora.LoraConfig(**{"r": 3, "lora_alpha": 6, **config}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, layer in lora_layers(model):
                for matrix in (layer.lora_A, layer.lora_B):
                    matrix.normal_(std=0.3, generator=generator)
        lora.save_adapter(model, tmp_path / name)
        return tmp_path / name

    return save


def lone(build, directory, prompt, **options):
    """The answer of a model with only this adapter in it, to only this prompt."""
    model = build()
    if directory is not None:
        lora.load_adapter(model, directory)
    return generate(model, [prompt], stop_ids=(), max_new_tokens=NUM_TOKENS, **options)[0]


def request(prompt, **changes):
    return Request(**{"prompt": prompt, "stop_ids": (), "max_new_tokens": NUM_TOKENS, **changes})


def drain(engine):
    with evaluating(engine.model):
        while engine.advance():
            pass


def test_requests_that_join_at_any_pass_get_the_lone_answers(model, prompts):
    expected = [generate(model, [prompt], stop_ids=(), max_new_tokens=NUM_TOKENS)[0] for prompt in prompts]
    engine, sequences = Engine(model), []
    with evaluating(model):
        for prompt in prompts:
            sequences.append(engine.submit(request(prompt)))
            engine.advance()
            engine.advance()
        while engine.advance():
            pass
    assert [sequence.generation for sequence in sequences] == expected


def test_a_cancelled_request_leaves_the_others_alone(build, prompts):
    model = build()
    engine, ended = Engine(model), []
    sequences = [engine.submit(request(prompt, on_end=ended.append)) for prompt in prompts]
    engine.cancel(sequences[0])
    with evaluating(model):
        for _ in range(4):
            engine.advance()
        engine.cancel(sequences[3])
        assert len(engine.living) == len(prompts) - 2
    drain(engine)
    assert set(ended) == set(sequences)
    assert [sequence.is_cancelled for sequence in sequences] == [i in (0, 3) for i in range(len(prompts))]
    for i in (1, 2, 4, 5, 6, 7):
        assert sequences[i].generation == generate(model, [prompts[i]], stop_ids=(), max_new_tokens=NUM_TOKENS)[0]


def test_each_row_of_a_mixed_batch_answers_as_its_adapter_alone(build, prompts, save_adapter):
    folders = [None, save_adapter("one", 1), save_adapter("two", 2, target_modules=["qkv_proj", "down_proj"])]
    model = build()
    adapters = [None, *(read_adapter(model, folder) for folder in folders[1:])]
    assert not list(lora_layers(model)), "reading leaves the model as it was"
    engine = Engine(model, prefix_bytes=1 << 20)
    sequences = [
        (engine.submit(request(prompt, adapter=adapter)), folder, prompt)
        for prompt in prompts
        for adapter, folder in zip(adapters, folders, strict=True)
    ]
    drain(engine)
    answers = set()
    for sequence, folder, prompt in sequences:
        assert sequence.generation == lone(build, folder, prompt)
        answers.add(tuple(sequence.generation.ids))
    assert len(answers) > 2 * len(prompts), "the adapters must make a difference"


def test_prefixes_of_one_adapter_never_serve_another(build, save_adapter):
    """Alternate adapters over one prompt, and reload one under the same name: each answers as it does alone."""
    model, prompt = build(), [(5 * i + 1) % 64 for i in range(30)]
    engine = Engine(model, prefix_bytes=1 << 22)
    folders = {None: None, "a": save_adapter("a", 1), "b": save_adapter("b", 2)}
    read = {name: None if folder is None else read_adapter(model, folder) for name, folder in folders.items()}

    def check(name, num_cached):
        for end in (20, 30):
            sequence = engine.submit(request(prompt[:end], adapter=read[name]))
            drain(engine)
            assert sequence.generation == lone(build, folders[name], prompt[:end]), name
        assert (sequence.num_cached_tokens >= 20) == num_cached

    for name in ("a", "b", None, "a", None, "b"):
        check(name, True)
    old_key = read["a"].key
    save_adapter("a", 3)
    read["a"] = read_adapter(model, folders["a"])
    assert read["a"].key != old_key
    sequence = engine.submit(request(prompt, adapter=read["a"]))
    drain(engine)
    assert (sequence.num_cached_tokens, sequence.generation) == (0, lone(build, folders["a"], prompt))
    save_adapter("a", 1)
    assert read_adapter(model, folders["a"]).key == old_key, "equal content has one key"


def test_a_known_beginning_is_not_read_again_and_changes_nothing(model):
    system = [(3 * i + 2) % 64 for i in range(12)]
    engine = Engine(model, prefix_bytes=1 << 22)
    for tail in ([7, 8, 9], [7, 9], [1] * 10, [7, 8, 9, 10, 11]):
        sequence = engine.submit(request(system + tail))
        drain(engine)
        assert sequence.generation == generate(model, [system + tail], stop_ids=(), max_new_tokens=NUM_TOKENS)[0]
    assert engine.prefixes.num_hit_tokens > 0


def test_what_prompts_that_wait_together_begin_with_is_read_once(model):
    system = [(3 * i + 2) % 64 for i in range(20)]
    prompts = [[*system, tail, 1] for tail in range(1, 7)]
    engine = Engine(model, prefix_bytes=1 << 22)
    sequences = [engine.submit(request(prompt)) for prompt in prompts]
    drain(engine)
    assert [sequence.num_cached_tokens for sequence in sequences] == [0] + [len(system)] * 5
    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert sequence.generation == generate(model, [prompt], stop_ids=(), max_new_tokens=NUM_TOKENS)[0]


def test_prompts_that_share_little_are_read_together(model):
    engine = Engine(model, prefix_bytes=1 << 22)
    sequences = [engine.submit(request([5] * 12 + [tail])) for tail in range(1, 4)]
    with evaluating(model):
        engine.advance()
    assert engine.living == sequences


def test_a_conversation_goes_on_behind_its_own_answer(build):
    model = build()
    engine = Engine(model, prefix_bytes=1 << 22)
    first = engine.submit(request([5] * 10))
    drain(engine)
    second = engine.submit(request([*first.ids, 1, 2]))
    drain(engine)
    assert second.num_cached_tokens == len(first.ids) - 1
    assert second.generation == generate(model, [[*first.ids, 1, 2]], stop_ids=(), max_new_tokens=NUM_TOKENS)[0]


def test_kept_beginnings_stay_below_their_limit(build):
    model = build()
    engine = Engine(model, prefix_bytes=100 * 2 * 2 * 2 * 8 * 4)
    for seed in range(12):
        engine.submit(request([seed] * 20))
        drain(engine)
        assert engine.prefixes.num_tokens <= engine.prefixes.max_tokens == 100


def test_logprobs_are_those_of_the_whole_vocabulary(build, next_logits):
    model, told = build(), []
    engine = Engine(model)
    sequence = engine.submit(request([1, 2, 3], num_logprobs=3, on_token=told.append))
    drain(engine)
    for at, token in enumerate(told):
        expected = next_logits(model, sequence.ids[: 3 + at]).log_softmax(-1)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
        assert [id for id, _ in token.likeliest] == expected.topk(3).indices.tolist()


def test_each_request_draws_by_its_own_rules(build, prompts):
    model = build()
    rules = [Sampling(), Sampling(1.2, seed=3), Sampling(0.7, 0.9, 5, seed=4, min_p=0.05), Sampling(repetition_penalty=1.5)]
    engine = Engine(model)
    mixed = [engine.submit(request(prompt, sampling=rule)) for prompt in prompts for rule in rules]
    drain(engine)
    alone = [lone(build, None, prompt, sampling=rule) for prompt in prompts for rule in rules]
    assert [sequence.generation for sequence in mixed] == alone


def test_a_constraint_decides_what_may_come(build):
    class Even:
        def __init__(self):
            self.seen = []

        def allow(self, logits_V):
            return logits_V.masked_fill(torch.arange(len(logits_V)) % 2 == 1, float("-inf"))

        def accept(self, token):
            self.seen.append(token)

    model, rule = build(), Even()
    engine = Engine(model)
    bound, free = engine.submit(request([1, 2, 3], constraint=rule)), engine.submit(request([1, 2, 3]))
    drain(engine)
    assert bound.generation.ids == rule.seen
    assert all(token % 2 == 0 for token in rule.seen)
    assert free.generation == generate(model, [[1, 2, 3]], stop_ids=(), max_new_tokens=NUM_TOKENS)[0]


def test_a_failure_is_told_to_its_own_request_alone(build, save_adapter):
    model = build()
    bad = read_adapter(model, save_adapter("bad", 1))
    for pair in bad.pairs.values():
        pair.lora_B_OR.fill_(float("inf"))
    engine = Engine(model, prefix_bytes=1 << 20)
    failing, fine = engine.submit(request([1, 2, 3], adapter=bad)), engine.submit(request([1, 2, 3]))
    drain(engine)
    with pytest.raises(ModelError, match="E-MODEL-120"):
        _ = failing.generation
    assert fine.generation == generate(model, [[1, 2, 3]], stop_ids=(), max_new_tokens=NUM_TOKENS)[0]


@pytest.mark.parametrize(
    ("more", "said"), [({"modules_to_save": ["lm_head"]}, "lm_head"), ({"use_dora": True}, r"qkv_proj \(DoRA\)")]
)
def test_refuses_an_adapter_that_is_more_than_pairs(build, save_adapter, more, said):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(AdapterError, match=rf"E-ADPT-270 .*{said}"):
        read_adapter(model, save_adapter("whole", 1, **more))
    assert not list(lora_layers(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
