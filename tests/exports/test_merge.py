"""The merged directory: transformers loads it with the logits of the live model, and nothing half-done is left."""

import json
import shutil

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from lorakeet.config import LoraConfig
from lorakeet.errors import AdapterError, ConfigError, ModelError
from lorakeet.exports import merge as merging
from lorakeet.exports.artefact import Options
from lorakeet.exports.formats import find_format
from lorakeet.lora.inject import inject, merge_and_unload
from lorakeet.models import weights
from lorakeet.models.config import DecoderConfig
from lorakeet.models.decoder import CausalLM
from tests.exports.conftest import SIZES, merge, source_of

IDS = [(11 * i + 5) % 640 for i in range(40)]


def our_logits(model):
    with torch.inference_mode():
        hidden = model(torch.tensor(IDS), torch.arange(len(IDS)), torch.tensor([0, len(IDS)], dtype=torch.int32))
        return F.linear(hidden, model.lm_head.weight).float()


def their_logits(directory, dtype=torch.float32, adapter=None):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0].float()


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


# PEFT reads a name that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000])
def test_transformers_loads_the_live_models_logits(tmp_path, base, adapter, tied, max_shard_bytes):
    directory = base(tie_word_embeddings=tied)
    saved, live = adapter(directory)
    merged = tmp_path / "merged"
    merged.mkdir()
    assert merging.merge(source_of(directory, saved), merged, max_shard_bytes=max_shard_bytes) == torch.float32
    expected = our_logits(live)
    assert relative(their_logits(merged), expected) < 1e-5
    assert relative(their_logits(directory, adapter=saved), expected) < 1e-5
    assert relative(their_logits(directory), expected) > 0.1, "the adapter must make a difference"
    assert relative(our_logits(weights.load_model(merged)), expected) < 1e-5
    assert (len(list(merged.glob("*.safetensors"))) > 1) == (max_shard_bytes == 30_000)


def test_bf16_is_rounded_once_from_float32(tmp_path, base, adapter):
    directory = base(dtype=torch.bfloat16)
    saved, live = adapter(directory)
    result = merge(directory, saved, tmp_path / "merged")
    stored = load_file(result.path / "model.safetensors")
    layer = live.model.layers[1].mlp.down_proj
    exact = layer.weight.double() + 3.0 * (layer.lora_B.double() @ layer.lora_A.double())
    found = stored["model.layers.1.mlp.down_proj.weight"]
    assert found.dtype == torch.bfloat16
    assert torch.all((found.double() - exact).abs() <= exact.abs() * 2**-8)
    # Rounding the weights costs no more than rounding the base's weights did.
    wide = merge(directory, saved, tmp_path / "wide", dtype="float32")
    assert relative(their_logits(result.path), their_logits(wide.path)) < 0.02


def test_the_bias_of_an_adapted_layer_stays():
    torch.manual_seed(0)
    model = CausalLM(DecoderConfig(**{name: size for name, size in SIZES.items() if name != "initializer_range"}))
    mlp = model.model.layers[1].mlp
    mlp.down_proj = torch.nn.Linear(SIZES["intermediate_size"], SIZES["hidden_size"], bias=True)
    inject(model, LoraConfig(r=4, target_modules=["down_proj"]))
    torch.nn.init.normal_(mlp.down_proj.lora_B)
    merged = dict(merging.merged_tensors(model, torch.float32, model.named_parameters()))
    unloaded = merge_and_unload(model).state_dict()
    assert merged.keys() == unloaded.keys()
    assert all(torch.equal(tensor, unloaded[name]) for name, tensor in merged.items())


def test_everything_that_is_not_adapted_stays_to_the_bit(tmp_path, base, adapter):
    directory = base(dtype=torch.bfloat16)
    saved, _ = adapter(directory, target_modules=["o_proj"])
    result = merge(directory, saved, tmp_path / "merged")
    before, after = load_file(directory / "model.safetensors"), load_file(result.path / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{i}.self_attn.o_proj.weight" for i in range(2)}


def test_stop_ids_and_tokenizer_come_along(tmp_path, base, adapter):
    directory = base()
    (directory / "generation_config.json").write_text('{"eos_token_id": 600, "do_sample": true, "temperature": 0.7}')
    saved, _ = adapter(directory)
    result = merge(directory, saved, tmp_path / "merged")
    generation = transformers.GenerationConfig.from_pretrained(result.path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.path)
    end, eos = (tokenizer.convert_tokens_to_ids(name) for name in ("<|end|>", "<|endoftext|>"))
    assert generation.eos_token_id == sorted({end, eos, 600})
    assert (generation.do_sample, generation.temperature) == (True, 0.7)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith("<|user|>")
    from lorakeet.data.tokenizer import load_tokenizer

    assert load_tokenizer(result.path).fingerprint == load_tokenizer(directory).fingerprint


def test_modules_to_save_are_taken_as_they_are(tmp_path, base, adapter):
    directory = base()
    saved, live = adapter(directory, modules_to_save=["lm_head"])
    with torch.no_grad():
        live.lm_head.weight.mul_(1.5)
    from lorakeet.lora.adapter import save_adapter

    save_adapter(live, saved)
    result = merge(directory, saved, tmp_path / "merged")
    assert relative(their_logits(result.path), our_logits(live)) < 1e-5


def test_base_weights_that_peft_saves_along_are_no_hindrance(tmp_path, base, adapter):
    directory = base()
    saved, live = adapter(directory, target_modules=["embed_tokens", "o_proj"])
    file = saved / "adapter_model.safetensors"
    embedding = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    save_file({**load_file(file), "base_model.model.model.embed_tokens.base_layer.weight": embedding}, file)
    assert relative(their_logits(merge(directory, saved, tmp_path / "merged").path), our_logits(live)) < 1e-5


@pytest.mark.parametrize("name", ["hf", "gguf", "gguf-adapter", "ollama"])
def test_no_writer_has_the_model_in_memory(tmp_path, base, adapter, monkeypatch, name):
    source = source_of(base(), adapter(tmp_path / "base")[0])
    monkeypatch.setattr(weights, "load_weights", lambda *_, **__: pytest.fail("loaded"))
    find_format(name).write(source, tmp_path, Options())


def test_rejects_an_output_that_holds_something(tmp_path, base, adapter, monkeypatch):
    directory = base()
    saved, _ = adapter(directory)
    output = tmp_path / "merged"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    monkeypatch.setattr(weights, "outline", lambda *_: pytest.fail("nothing is to be loaded"))
    with pytest.raises(ConfigError, match=f"E-CFG-48 {output} is not empty"):
        merge(directory, saved, output)
    with pytest.raises(ConfigError, match=r"E-CFG-48 .* is a file"):
        merge(directory, saved, output / "notes.txt")
    assert [file.name for file in output.iterdir()] == ["notes.txt"]


def test_an_empty_output_directory_is_used(tmp_path, base, adapter):
    directory = base()
    saved, _ = adapter(directory)
    (tmp_path / "merged").mkdir()
    assert merge(directory, saved, tmp_path / "merged").path == tmp_path / "merged"
    assert (tmp_path / "merged" / "config.json").is_file()


def test_a_failure_leaves_nothing_behind(tmp_path, base, adapter, monkeypatch):
    directory = base()
    saved, _ = adapter(directory)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "copy_tokenizer_of", fail)
    with pytest.raises(ConfigError, match=r"E-CFG-47 .*No space left"):
        merge(directory, saved, tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


def test_rejects_a_full_disk_before_writing(tmp_path, base, adapter, monkeypatch):
    directory = base()
    saved, _ = adapter(directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ConfigError, match=r"E-CFG-47 .*need [0-9,]+ bytes, have 10"):
        merge(directory, saved, tmp_path / "merged")


def test_70_a_quantised_base_is_refused(tmp_path, base, adapter):
    directory = base()
    saved, _ = adapter(directory)
    config = json.loads((directory / "config.json").read_text())
    quantised = {**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (directory / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(ModelError, match=r"E-MODEL-102 .*already quantised.*16-bit weights"):
        merge(directory, saved, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_rejects_another_base(tmp_path, base, adapter):
    directory = base()
    saved, _ = adapter(directory)
    other = shutil.copytree(directory, tmp_path / "other")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    model.save_pretrained(other)
    with pytest.raises(AdapterError, match="E-ADPT-64"):
        merge(other, saved, tmp_path / "merged")


def test_rejects_a_quantised_base(tmp_path, base, adapter):
    directory = base()
    saved, _ = adapter(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(ModelError, match="16-bit"):
        merge(directory, saved, tmp_path / "merged")


def test_rejects_an_update_of_tied_weights(tmp_path, base, adapter):
    directory = base(tie_word_embeddings=True)
    saved, _ = adapter(directory, target_modules=["embed_tokens", "o_proj"])
    with pytest.raises(AdapterError, match=r"E-ADPT-108 .*embed_tokens, which this model ties"):
        merge(directory, saved, tmp_path / "merged")


def test_rejects_an_update_that_overflows(tmp_path, base, adapter):
    directory = base()
    saved, _ = adapter(directory, lora_alpha=1e9)
    with pytest.raises(AdapterError, match=r"E-ADPT-109 .*torch.float16.* Merge in float32"):
        merge(directory, saved, tmp_path / "merged", dtype="float16")
    assert not (tmp_path / "merged").exists()


def test_the_tokenizers_class_is_one_that_transformers_4_knows(tmp_path, base, adapter):
    directory = base()
    file = directory / "tokenizer_config.json"
    newer = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|end|>"]}
    file.write_text(json.dumps({**json.loads(file.read_text()), **newer}))
    result = merge(directory, adapter(directory)[0], tmp_path / "merged")
    written = json.loads((result.path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (written["extra_special_tokens"], written["additional_special_tokens"]) == ({}, ["<|end|>"])
    config = json.loads((result.path / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"
