"""Quantised loading: what is quantised, what it costs while it loads, and the cache."""

import json

import pytest
import torch

from lorakeet.config import QuantizationConfig
from lorakeet.errors import ModelError
from lorakeet.files.cache import is_whole
from lorakeet.models.weights import load_model
from lorakeet.quant import loading as quantized
from lorakeet.quant.layers import Linear4bit, Linear8bit, QuantizedLinear
from lorakeet.quant.loading import load_quantized_model, quantized_paths

NF4 = QuantizationConfig(load_in_4bit=True)


def layers(model):
    return {path: part for path, part in model.named_modules() if isinstance(part, QuantizedLinear)}


def same_state(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("shards", ["1GB", "30KB"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_linear_layers_are_quantised_and_nothing_else(save_phi3, shards, tied, options):
    _, directory = save_phi3(max_shard_size=shards, dtype=torch.bfloat16, tie_word_embeddings=tied)
    config = QuantizationConfig(**options)
    model, plain = load_quantized_model(directory, config, dtype=torch.bfloat16), load_model(directory)
    assert sorted(layers(model)) == sorted(quantized_paths(plain))
    assert len(layers(model)) == 8
    for path, layer in layers(model).items():
        expected = quantized.quantize_weight(plain.get_submodule(path).weight, config)
        assert type(layer) is (Linear8bit if config.load_in_8bit else Linear4bit)
        assert torch.equal(layer.dequantized(), expected.dequantized())
    kept = {name: p for name, p in plain.named_parameters() if name.removesuffix(".weight") not in layers(model)}
    assert all(torch.equal(model.get_parameter(name), p) for name, p in kept.items())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    again = load_quantized_model(directory, config, dtype=torch.bfloat16)
    assert same_state(model, again)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def test_forward_equals_that_of_the_dequantised_model(save_phi3):
    _, directory = save_phi3(hidden_size=96)
    model = load_quantized_model(directory, NF4, dtype=torch.float32)
    plain = load_model(directory)
    for path, layer in layers(model).items():
        plain.get_submodule(path).weight.data = layer.dequantized()
    batch = (torch.arange(40) % 90, torch.arange(40), torch.tensor([0, 40], dtype=torch.int32))
    assert torch.equal(model(*batch), plain(*batch))


def test_second_start_reads_the_cache_and_not_the_weights(save_phi3, monkeypatch):
    _, directory = save_phi3()
    first = load_quantized_model(directory, NF4, dtype=torch.bfloat16)
    monkeypatch.setattr(quantized, "_quantize", None)
    assert same_state(first, load_quantized_model(directory, NF4, dtype=torch.bfloat16))


@pytest.mark.parametrize("change", ["weights", "type", "double", "dtype", "bits"])
def test_cache_is_not_taken_for_anything_else(save_phi3, monkeypatch, change):
    _, directory = save_phi3()
    load_quantized_model(directory, NF4, dtype=torch.bfloat16)
    calls = []
    monkeypatch.setattr(quantized, "_write", lambda *args: calls.append(args))
    config, dtype = NF4, torch.bfloat16
    if change == "weights":
        _, directory = save_phi3("other", initializer_range=0.3)
    elif change == "dtype":
        dtype = torch.float32
    else:
        options = {"type": {"bnb_4bit_quant_type": "fp4"}, "double": {"bnb_4bit_use_double_quant": False}}
        config = QuantizationConfig(load_in_4bit=change != "bits", load_in_8bit=change == "bits", **options.get(change, {}))
    load_quantized_model(directory, config, dtype=dtype)
    assert calls


@pytest.mark.parametrize("damage", ["flip", "truncate", "no hash", "bad hash"])
def test_damaged_cache_is_made_again(save_phi3, own_cache, damage):
    _, directory = save_phi3(f"model-{damage.replace(' ', '-')}", initializer_range=0.01 + len(damage) / 100)
    first = load_quantized_model(directory, NF4, dtype=torch.bfloat16)
    home = own_cache / "quantized" / quantized._key(directory, NF4, torch.bfloat16)
    file, digest = home / "model.safetensors", home / "lorakeet.json"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-100] ^= 1
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:-7])
    elif damage == "no hash":
        digest.unlink()
    else:
        digest.write_text("[1]")
    assert same_state(first, load_quantized_model(directory, NF4, dtype=torch.bfloat16))
    assert is_whole(home)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(save_phi3, tmp_path, monkeypatch):
    _, directory = save_phi3()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path / "file"))
    assert layers(load_quantized_model(directory, NF4, dtype=torch.bfloat16))


def test_loading_never_holds_two_16_bit_matrices(save_phi3, monkeypatch):
    """While a shard is read, what is alive is the quantised model so far and one tensor."""
    import gc

    _, directory = save_phi3(hidden_size=192, intermediate_size=256, num_hidden_layers=4, max_shard_size="300KB")
    matrices = []
    real = quantized.quantize_weight

    def alive():
        tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.ndim == 2]
        return [t for t in tensors if t.dtype == torch.bfloat16 and t.shape[0] * t.shape[1] > 192 * 97 and not t.is_meta]

    before = alive()  # other tests of this process keep models too

    def watched(weight, config):
        matrices.append(sum(not any(t is other for other in before) for t in alive()))
        return real(weight, config)

    monkeypatch.setattr(quantized, "quantize_weight", watched)
    load_quantized_model(directory, NF4, dtype=torch.bfloat16)
    assert len(matrices) == 16
    assert max(matrices) <= 1


def test_weights_that_are_not_finite_are_named(save_phi3):
    model, directory = save_phi3("inf")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = float("inf")
    model.save_pretrained(directory)
    with pytest.raises(ModelError, match=r"E-MODEL-68.*layers.1.mlp.down_proj.weight"):
        load_quantized_model(directory, NF4, dtype=torch.bfloat16)


def test_cache_is_in_bitsandbytes_layout(save_phi3, own_cache):
    from safetensors.torch import load_file

    _, directory = save_phi3()
    model = load_quantized_model(directory, NF4, dtype=torch.bfloat16)
    home = own_cache / "quantized" / quantized._key(directory, NF4, torch.bfloat16)
    tensors = load_file(home / "model.safetensors")
    prefix = "model.layers.0.self_attn.qkv_proj.weight"
    facts = json.loads(bytes(tensors[f"{prefix}.quant_state.bitsandbytes__nf4"].tolist()))
    assert facts["shape"] == [80, 48]
    assert torch.equal(tensors[prefix], model.get_parameter(prefix))
