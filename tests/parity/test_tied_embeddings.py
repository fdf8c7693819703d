"""Embedding and head that are one weight, trained along with an adapter: PEFT's numbers and files, one tensor when merged."""

import dataclasses

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lorakeet.config import LoraConfig
from lorakeet.data.conversation import Example
from lorakeet.errors import AdapterError, ConfigError
from lorakeet.exports.merge import merged_tensors
from lorakeet.lora.adapter import load_adapter, save_adapter
from lorakeet.lora.disable import disabled_adapters
from lorakeet.lora.inject import inject, merge_and_unload, remove, trained_updates
from lorakeet.models import weights
from lorakeet.models.decoder import CausalLM
from lorakeet.objectives.sft import pack_for, packed_loss
from tests.parity.test_split_projections import IDS, logits, loss, relative
from tests.training.tiny import CONFIG

pytestmark = pytest.mark.filterwarnings("ignore")
TIED = dataclasses.replace(CONFIG, tie_word_embeddings=True)
NAMES = [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]]
KEYS = {"base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    torch.manual_seed(0)
    model = CausalLM(TIED)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2)
    weights.save_weights(model.named_parameters(), folder, TIED, dtype=torch.float32)
    return folder


def adapted(directory, names):
    config = LoraConfig(r=4, target_modules=["qkv_proj"], modules_to_save=names, ensure_weight_tying=True)
    torch.manual_seed(5)
    model = inject(weights.load_model(directory), config)
    with torch.no_grad():
        for _, update in trained_updates(model):
            update.lora_B.normal_(0, 0.1)
        model.lm_head.weight.add_(0.1 * torch.randn_like(model.lm_head.weight))
    return model


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_embedding_and_head_train_as_one_as_in_peft(directory, names, tmp_path):
    model = adapted(directory, names)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name]
    assert trained == ["model.embed_tokens.weight"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    save_adapter(model, tmp_path)
    assert {name for name in load_file(tmp_path / "adapter_model.safetensors") if "lora_" not in name} == KEYS
    base = transformers.AutoModelForCausalLM.from_pretrained(directory)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()
    expected = theirs(IDS[None]).logits[0]
    assert relative(logits(model), expected) < 1e-5
    loss(expected).backward()
    (grad,) = [p.grad for name, p in theirs.named_parameters() if p.grad is not None and "lora_" not in name]
    batch = pack_for(model, [Example(IDS.tolist(), ((1, len(IDS)),), "row")])
    (packed_loss(model, batch) / (len(IDS) - 1)).backward()
    assert relative(model.lm_head.weight.grad, grad) < 1e-5
    again = weights.load_model(directory)
    load_adapter(again, tmp_path)
    assert relative(logits(again), expected) < 1e-5
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_merged_models_have_the_trained_weight_for_both(directory, tmp_path):
    model, plain = adapted(directory, ["embed_tokens"]), weights.load_model(directory)
    trained = logits(model)
    with disabled_adapters(model):
        assert torch.equal(logits(model), logits(plain))
    save_adapter(model, tmp_path / "adapter")
    outline = weights.outline(directory)
    load_adapter(outline, tmp_path / "adapter")
    state = merged_tensors(outline, torch.float32, weights.each_parameter(outline, directory))
    weights.save_weights(state, tmp_path / "merged", TIED, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert relative(theirs(IDS[None]).logits[0], trained) < 1e-5
    assert relative(logits(merge_and_unload(adapted(directory, ["embed_tokens"]))), trained) < 1e-5
    assert torch.equal(logits(remove(model)), logits(plain))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("wanted", [[7, 3, 40], {"embed_tokens": [3, 9]}])
def test_single_tokens_train_as_in_peft(directory, tied, wanted, tmp_path):
    config = dataclasses.replace(TIED, tie_word_embeddings=tied)
    base = weights.load_model(directory)
    if not tied:
        state = {**dict(base.named_parameters()), "lm_head.weight": base.lm_head.weight.flip(0)}
        directory = tmp_path / "base"
        weights.save_weights(state.items(), directory, config, dtype=torch.float32)

    def build():
        return weights.load_model(directory)

    torch.manual_seed(5)
    model = inject(build(), LoraConfig(r=4, target_modules=["qkv_proj"], trainable_token_indices=wanted))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_tokens" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    save_adapter(model, tmp_path / "adapter")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True).eval()
    expected = theirs(IDS[None]).logits[0]
    assert relative(logits(model), expected) < 1e-5
    assert relative(logits(build()), expected) > 1e-2
    loss(expected).backward()
    (grad,) = [p.grad for name, p in theirs.named_parameters() if p.grad is not None and "trainable_tokens" in name]
    batch = pack_for(model, [Example(IDS.tolist(), ((1, len(IDS)),), "row")])
    (packed_loss(model, batch) / (len(IDS) - 1)).backward()
    assert relative(model.model.embed_tokens.lora_tokens_ND.grad, grad) < 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    mine, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "theirs"))
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    again = build()
    load_adapter(again, tmp_path / "theirs")
    assert relative(logits(again), expected) < 1e-5
    with disabled_adapters(again):
        assert torch.equal(logits(again), logits(build()))
    outline = weights.outline(directory)
    load_adapter(outline, tmp_path / "adapter")
    merged = merged_tensors(outline, torch.float32, weights.each_parameter(outline, directory))
    weights.save_weights(merged, tmp_path / "merged", config, dtype=torch.float32)
    assert relative(logits(weights.load_model(tmp_path / "merged")), expected) < 1e-5
    in_place = merge_and_unload(again)
    assert relative(logits(in_place), expected) < 1e-5
    assert (in_place.lm_head.weight is in_place.model.embed_tokens.weight) == tied
    assert torch.equal(logits(remove(model)), logits(build()))


def test_what_would_part_tied_weights_is_refused(directory, tmp_path):
    with pytest.raises(ConfigError, match=r"E-CFG-165.*ensure_weight_tying: true"):
        inject(weights.load_model(directory), LoraConfig(target_modules=["o_proj"], modules_to_save=["embed_tokens"]))
    both = LoraConfig(target_modules=["lm_head"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(ConfigError, match="E-CFG-165 modules_to_save lm_head would get LoRA"):
        inject(weights.load_model(directory), both)
    for wanted, text in (([61], "61 is no token of 61"), ([3, 3], "repeated"), ({"o_proj": [3]}, "no embedding")):
        with pytest.raises(ConfigError, match=rf"E-CFG-174 .*{text}"):
            inject(weights.load_model(directory), LoraConfig(target_modules=["o_proj"], trainable_token_indices=wanted))
    tokens = LoraConfig(
        target_modules=["o_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True, trainable_token_indices=[3]
    )
    with pytest.raises(ConfigError, match=r"E-CFG-174 .*trained in full as well"):
        inject(weights.load_model(directory), tokens)
    save_adapter(adapted(directory, ["embed_tokens"]), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(61, 32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"E-ADPT-66.*model\.embed_tokens\.weight and lm_head\.weight differ"):
        load_adapter(weights.load_model(directory), tmp_path)
