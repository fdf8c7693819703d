"""The decoder as every family, held against transformers' own model: numbers, gradients, generation, files."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from lorakeet.config import LoraConfig, QuantizationConfig
from lorakeet.data.conversation import Example
from lorakeet.exports.merge import merged_tensors
from lorakeet.infer.engine import generate
from lorakeet.infer.mode import evaluating
from lorakeet.lora.inject import inject
from lorakeet.models import weights
from lorakeet.models.config import DecoderConfig
from lorakeet.models.config_file import FAMILIES, config_from_json, config_to_json, load_config
from lorakeet.models.decoder import CausalLM
from lorakeet.models.families.shared import Family
from lorakeet.objectives.sft import pack_for, packed_loss
from lorakeet.quant.layers import QuantizedLinear
from lorakeet.quant.loading import load_quantized_model
from tests.models.families.conftest import SIZES, build

LENGTHS = [17, 5, 40]  # the window is 5 tokens, the context before stretching 32


def documents():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, SIZES["vocab_size"], (length,), generator=generator) for length in LENGTHS]


def our_logits(model, docs):
    borders = F.pad(torch.tensor([len(doc) for doc in docs]).cumsum(0), (1, 0)).to(torch.int32)
    return model.logits(model(torch.cat(docs), torch.cat([torch.arange(len(doc)) for doc in docs]), borders))


def their_logits(model, docs):
    return torch.cat([model(doc[None]).logits[0] for doc in docs])


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_packed_loss_and_gradients_of_all_parameters_match_transformers_alone(pair):
    docs = documents()
    expected = their_logits(pair.theirs, docs)
    assert relative(our_logits(pair.ours, docs), expected) < 1e-5
    targets = torch.cat([F.pad(doc[1:], (0, 1), value=-100) for doc in docs])
    loss = F.cross_entropy(expected, targets, reduction="sum")
    theirs = dict(pair.theirs.named_parameters())
    expected_grads = dict(zip(theirs, torch.autograd.grad(loss, list(theirs.values())), strict=True))

    rows = [Example(doc.tolist(), ((1, len(doc)),), f"row {i}") for i, doc in enumerate(docs)]
    ours = dict(pair.ours.named_parameters())
    found = packed_loss(pair.ours, pack_for(pair.ours, rows))
    grads = zip(ours, torch.autograd.grad(found, list(ours.values())), strict=True)
    stored = {part: grad for name, whole in grads for part, grad in weights.split(pair.ours.stored_parts, name, whole)}
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    assert stored.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        assert relative(stored[name], grad) < 1e-5, name


def test_documents_of_a_pack_are_computed_as_alone(pair):
    docs = documents()
    alone = torch.cat([our_logits(pair.ours, [doc]) for doc in docs])
    torch.testing.assert_close(our_logits(pair.ours, docs), alone, rtol=1e-5, atol=1e-5)


def test_greedy_answers_with_a_cache_are_transformers_own(pair):
    prompts = [doc[:length].tolist() for doc, length in zip(documents(), (9, 3, 30), strict=True)]
    with evaluating(pair.ours):
        found = generate(pair.ours, prompts, stop_ids=(), max_new_tokens=8)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = list(prompt)
        for _ in range(8):
            with torch.inference_mode():
                ids.append(int(pair.theirs(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert answer.ids == ids[len(prompt) :]


def test_a_beginning_that_was_read_before_goes_on_in_the_cache(pair):
    from lorakeet.models.kv_cache import KVCache

    model, ids = pair.ours, documents()[2]
    ids = ids[: model.config.switch_length]  # beyond it LongRoPE rotates the beginning anew
    cache = KVCache(model.config, dtype=torch.float32, device=torch.device("cpu"))
    with torch.inference_mode():
        expected = our_logits(model, [ids])[20:]
        cache.begin_prompts([20])
        model(ids[:20], torch.arange(20), torch.tensor([0, 20], dtype=torch.int32), cache=cache)
        beginning = cache.copy_out(0, 20)
        cache.begin_prompts([len(ids)], [(beginning, 20)])
        borders = torch.tensor([0, len(ids) - 20], dtype=torch.int32)
        hidden = model(ids[20:], torch.arange(20, len(ids)), borders, cache=cache)
        torch.testing.assert_close(model.logits(hidden), expected, rtol=1e-4, atol=1e-4)


def test_what_is_written_is_what_was_read_and_loads_in_transformers(pair, tmp_path):
    weights.save_weights(pair.ours.named_parameters(), tmp_path, pair.ours.config, dtype=torch.float32)
    before, after = load_file(pair.directory / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert load_config(tmp_path) == load_config(pair.directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(theirs) is type(pair.theirs)
    docs = documents()[2:]
    assert torch.equal(their_logits(theirs, docs), their_logits(pair.theirs, docs))


def test_one_parameter_at_a_time_from_disk_is_the_whole_model(pair):
    outline = weights.outline(pair.directory)
    for name, parameter in weights.each_parameter(outline, pair.directory):
        assert torch.equal(parameter, pair.ours.get_parameter(name))
    for path in ("model.layers.1.self_attn.qkv_proj", "model.layers.0.mlp.down_proj"):
        assert torch.equal(weights.read_weight(pair.directory, path), pair.ours.get_submodule(path).weight)


def test_four_bits_compute_as_the_dequantised_weights(pair):
    config = QuantizationConfig(load_in_4bit=True)
    plain = copy.deepcopy(pair.ours)
    for _ in ("made", "from the cache"):
        model = load_quantized_model(pair.directory, config, dtype=torch.float32)
        for path, layer in model.named_modules():
            if isinstance(layer, QuantizedLinear):
                plain.get_submodule(path).weight.data = layer.dequantized()
                assert (layer.bias is None) == (plain.get_submodule(path).bias is None)
        torch.testing.assert_close(our_logits(model, documents()), our_logits(plain, documents()))


def test_a_merged_model_computes_in_transformers_as_the_adapter_here(pair, tmp_path):
    model = inject(copy.deepcopy(pair.ours), LoraConfig(r=4, lora_alpha=8))
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.2)
    state = merged_tensors(model, torch.float32, model.named_parameters())
    weights.save_weights(state, tmp_path, model.config, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert relative(their_logits(theirs, documents()), our_logits(model, documents())) < 1e-5
    assert relative(our_logits(model, documents()), our_logits(pair.ours, documents())) > 0.01


@pytest.mark.parametrize("kind", ["gemma2", "qwen3"])
def test_bfloat16_error_is_no_larger_than_transformers(kind, tmp_path):
    theirs, docs = build(kind), documents()
    truth = their_logits(theirs, docs)
    theirs.save_pretrained(tmp_path)
    ours = weights.load_model(tmp_path, dtype=torch.bfloat16)
    error = relative(our_logits(ours, docs).float(), truth)
    assert error <= 1.05 * relative(their_logits(theirs.bfloat16(), docs).float(), truth)


def test_shards_may_part_what_is_fused(pair, tmp_path):
    pair.theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    model = weights.load_model(tmp_path)
    assert all(torch.equal(value, pair.ours.get_parameter(name)) for name, value in model.named_parameters())


def test_llama_in_its_own_layout_is_phi3_in_its(tmp_path):
    """The demo's SmolLM2 is a Llama whose projections were fused on disk; both layouts are one model."""
    build("llama2").save_pretrained(tmp_path / "llama")
    llama = weights.load_model(tmp_path / "llama")
    raw = config_to_json(llama.config) | {"model_type": "phi3", "original_max_position_embeddings": 64}
    phi3 = config_from_json(raw, "phi3")
    weights.save_weights(llama.named_parameters(), tmp_path / "phi3", phi3, dtype=torch.float32)
    assert "model.layers.0.self_attn.qkv_proj.weight" in load_file(tmp_path / "phi3" / "model.safetensors")
    assert torch.equal(our_logits(llama, documents()), our_logits(weights.load_model(tmp_path / "phi3"), documents()))


def graph_of(config):
    """Return what a compiled layer of this description computes, as the names of its operations."""
    seen = []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph.forward

    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = CausalLM(config).model.layers[1]
    cos = torch.rand(6, config.rotary_dim // 2)
    torch.compile(layer, backend=backend, fullgraph=True)(
        torch.rand(6, config.hidden_size), cos, cos, torch.tensor([0, 6], dtype=torch.int32)
    )
    return seen


def test_a_compiled_layer_holds_nothing_that_its_family_does_not_use():
    sizes = (67, 32, 48, 2, 4, 2)
    plain = graph_of(DecoderConfig(*sizes))
    assert not any("tanh" in step or "gelu" in step for step in plain)
    assert graph_of(DecoderConfig(*sizes, family="llama", qkv_bias=True)) == plain
    gemma = DecoderConfig(*sizes, norms_add_one=True, has_qk_norm=True, has_post_norms=True, hidden_act="gelu_pytorch_tanh")
    rsqrts = [sum("rsqrt" in step for step in graph) for graph in (plain, graph_of(gemma))]
    assert rsqrts == [2, 6]


def test_a_family_is_one_table_and_one_line(tmp_path, monkeypatch):
    """An invented family: Qwen3's norms, Gemma's activation, and a window in the first layer alone."""
    table = Family(
        model_type="invented",
        architecture="InventedForCausalLM",
        defaults={"rms_norm_eps": 1e-6, "rope_theta": 500.0, "tie_word_embeddings": True, "act": "gelu_pytorch_tanh"},
        keys={"hidden_act": "act"},
        fixed={"has_qk_norm": True},
        read_layers=lambda raw: {"sliding_window": raw["first_window"], "full_layers": (1, 2)},
        write_layers=lambda config: {"first_window": config.sliding_window},
    )
    monkeypatch.setitem(FAMILIES, "invented", table)
    config = config_from_json({**SIZES, "model_type": "invented", "first_window": 4}, "invented")
    assert [config.window(layer) for layer in range(3)] == [4, None, None]
    torch.manual_seed(0)
    model = CausalLM(config).eval()
    weights.save_weights(model.named_parameters(), tmp_path, config, dtype=torch.float32)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["InventedForCausalLM"]
    assert torch.equal(our_logits(weights.load_model(tmp_path), documents()), our_logits(model, documents()))
