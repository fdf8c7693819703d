"""LoRA on q, k and v apart, over a decoder that keeps them in one matrix: PEFT's numbers and files on transformers' Llama."""

import json

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError, ConfigError
from lorakeet.lora.adapter import load_adapter, save_adapter
from lorakeet.lora.disable import disabled_adapters
from lorakeet.lora.inject import inject, lora_layers, merge_and_unload, remove, trained_updates
from lorakeet.lora.per_row import PerRowAdapters, read_adapter
from lorakeet.models.decoder import CausalLM
from lorakeet.quant.layers import Linear4bit
from tests.training.tiny import CONFIG

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.arange(3, 40)
ROWS = {"qkv_proj": {"q_proj": 32, "k_proj": 16, "v_proj": 16}, "gate_up_proj": {"gate_proj": 48, "up_proj": 48}}
CASES = [
    {"target_modules": "all-linear"},
    {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    {
        "target_modules": ["q_proj", "k_proj", "up_proj", "o_proj"],
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"up_proj": 3},
    },
    {"target_modules": ["v_proj", "gate_proj", "down_proj"], "use_dora": True},
    {"target_modules": "all-linear", "use_dora": True, "layers_to_transform": [1]},
]


def ours():
    """A decoder with fused projections, whose checkpoint is said to have them apart."""
    torch.manual_seed(0)
    model = CausalLM(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.stored_parts = ROWS
    return model.eval()


def llama():
    """The same weights in transformers' Llama."""
    keys = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads rms_norm_eps"
    config = transformers.LlamaConfig(**{key: getattr(CONFIG, key) for key in keys.split()}, max_position_embeddings=128)
    state = {}
    for name, weight in ours().named_parameters():
        owner, _, fused = name.removesuffix(".weight").rpartition(".")
        parts = ROWS.get(fused, {fused: len(weight)})
        pieces = weight.detach().split(list(parts.values()))
        state |= {f"{owner}.{part}.weight".lstrip("."): piece for part, piece in zip(parts, pieces, strict=True)}
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def logits(model):
    return model.logits(model(IDS, torch.arange(len(IDS)), torch.tensor([0, len(IDS)], dtype=torch.int32)))


def loss(logits_TV):
    return F.cross_entropy(logits_TV[:-1], IDS[1:])


def randomise(model):
    """Return the model with random adapters, as if trained."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, update in trained_updates(model):
            update.lora_A.normal_(0, 0.1, generator=generator)
            update.lora_B.normal_(0, 0.1, generator=generator)
            if update.lora_magnitude is not None:
                update.lora_magnitude.mul_(1 + 0.2 * torch.rand(len(update.lora_magnitude), generator=generator))
    return model


def adapted(**lora):
    return randomise(inject(ours(), LoraConfig(r=4, lora_alpha=12, **lora)))


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request, tmp_path):
    """Options, our adapted model and where its adapter is saved."""
    model = adapted(**request.param)
    save_adapter(model, tmp_path)
    return request.param, model, tmp_path


def test_logits_gradients_and_names_are_those_of_peft(case):
    options, model, folder = case
    theirs = peft.PeftModel.from_pretrained(llama(), folder, is_trainable=True).eval()
    expected = theirs(IDS[None]).logits[0]
    assert relative(logits(model), expected) < 1e-5
    assert relative(logits(ours()), expected) > 1e-2
    loss(logits(model)).backward()
    loss(expected).backward()
    grads = {}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            grads[name.replace(".default", "")] = parameter.grad
    found = {}
    for path, update in trained_updates(model):
        found[f"base_model.model.{path}.lora_A.weight"] = update.lora_A.grad
        found[f"base_model.model.{path}.lora_B.weight"] = update.lora_B.grad
        if options.get("use_dora"):
            found[f"base_model.model.{path}.lora_magnitude_vector.weight"] = update.lora_magnitude.grad
    assert found.keys() == grads.keys()
    for name, grad in found.items():
        assert relative(grad, grads[name]) < 1e-5, name
    theirs.save_pretrained(folder / "theirs")
    written, saved = load_file(folder / "theirs/adapter_model.safetensors"), load_file(folder / "adapter_model.safetensors")
    assert written.keys() == saved.keys()
    assert all(torch.equal(saved[name], written[name]) for name in saved)
    fresh = ours()
    load_adapter(fresh, folder / "theirs")
    assert relative(logits(fresh), expected) < 1e-5


def test_merging_removing_and_switching_off(case):
    _, model, _folder = case
    trained, plain = logits(model), logits(ours())
    with disabled_adapters(model):
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), trained)
    merged = merge_and_unload(adapted(**case[0]))
    assert relative(logits(merged), trained) < 1e-5
    assert not list(lora_layers(merged))
    assert torch.equal(logits(remove(model)), plain)


def test_the_file_names_layers_as_the_checkpoint_does(tmp_path):
    save_adapter(adapted(target_modules=["q_proj", "v_proj"]), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in load_file(tmp_path / "adapter_model.safetensors")


def test_a_fused_name_is_refused_with_the_names_of_the_checkpoint():
    with pytest.raises(ConfigError, match=r"E-CFG-42.*the model has .*q_proj, k_proj, v_proj"):
        inject(ours(), LoraConfig(target_modules=["qkv_proj"]))
    with pytest.raises(ConfigError, match=r"E-CFG-42.*q_proj.* is a part of a layer that"):
        inject(ours(), LoraConfig(target_modules=["o_proj"], modules_to_save=["q_proj"]))


def test_over_four_bits_and_by_row(tmp_path):
    def quantised():
        model = ours()
        for path, module in list(model.named_modules()):
            if isinstance(module, torch.nn.Linear) and path != "lm_head":
                model.set_submodule(path, Linear4bit.quantize(module.weight.data))
        return model

    def dequantised():
        model = quantised()
        for path, module in list(model.named_modules()):
            if isinstance(module, Linear4bit):
                plain = torch.nn.Linear(module.in_features, module.out_features, bias=False)
                plain.weight.data = module.dequantized()
                model.set_submodule(path, plain)
        return model

    for use_dora in (False, True):
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], use_dora=use_dora)
        four, full = (randomise(inject(build(), config)) for build in (quantised, dequantised))
        assert relative(logits(four), logits(full)) < 1e-5
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    model = randomise(inject(ours(), config))
    save_adapter(model, tmp_path)
    base = ours()
    rows = PerRowAdapters(base)
    with torch.no_grad(), rows.of_rows([read_adapter(base, tmp_path)] * len(IDS)):
        assert relative(logits(base), logits(model)) < 1e-5
    rows.close()


@pytest.mark.parametrize("options", [*CASES[:3], {"target_modules": "all-linear", "use_dora": True}])
def test_an_adapter_of_separate_layers_loads_onto_fused_ones(options, tmp_path):
    model = adapted(**options)
    save_adapter(model, tmp_path / "apart")
    fused = ours()
    fused.stored_parts = {}
    config = load_adapter(fused, tmp_path / "apart")
    assert not set(config.target_modules) & {"q_proj", "k_proj"}
    assert relative(logits(fused), logits(model)) < 1e-5
    save_adapter(fused, tmp_path / "fused")
    again = ours()
    again.stored_parts = {}
    load_adapter(again, tmp_path / "fused")
    assert relative(logits(again), logits(model)) < 1e-5


def test_what_has_no_form_on_fused_layers_is_refused_by_name(tmp_path):
    for name, options, text in (
        ("lengths", {"target_modules": ["q_proj"], "use_dora": True}, "DoRA of q_proj alone has no form on .*qkv_proj"),
        ("place", {"target_modules": ["k_proj"]}, "where k_proj lies in .*qkv_proj cannot be told"),
    ):
        save_adapter(adapted(**options), tmp_path / name)
        fused = ours()
        fused.stored_parts = {}
        with pytest.raises(AdapterError, match=rf"E-ADPT-66.*{text}"):
            load_adapter(fused, tmp_path / name)
        assert not list(lora_layers(fused))
