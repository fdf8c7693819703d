"""Weights from Hugging Face directories, held against transformers' own loading; saving; the base's fingerprint."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from lorakeet.errors import ModelError
from lorakeet.files import durable
from lorakeet.models import weights
from lorakeet.models.config import DecoderConfig
from lorakeet.models.config_file import load_config
from lorakeet.models.decoder import CausalLM
from lorakeet.models.weights import fingerprint, load_model, load_weights, save_weights

IDS = torch.tensor([3, 14, 15, 92, 65, 35, 89, 79, 32, 38])


def logits(model, ids=IDS):
    with torch.no_grad():
        if isinstance(model, transformers.PreTrainedModel):
            return model(ids[None]).logits[0]
        hidden = model(ids, torch.arange(len(ids)), torch.tensor([0, len(ids)], dtype=torch.int32))
        return F.linear(hidden, model.lm_head.weight)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"], ids=["single", "sharded"])
def test_load_model_matches_transformers(save_phi3, tied, shard_size):
    theirs, directory = save_phi3(tie_word_embeddings=tied, max_shard_size=shard_size)
    assert (len(list(directory.glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    ours = load_model(directory)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == tied
    assert not ours.training
    for name, parameter in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name), parameter)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16])
def test_load_model_casts(save_phi3, stored, wanted):
    theirs, directory = save_phi3(dtype=stored)
    ours = load_model(directory, dtype=wanted)
    for name, parameter in theirs.named_parameters():
        assert ours.get_parameter(name).dtype == (wanted or stored)
        assert torch.equal(ours.get_parameter(name), parameter.to(wanted or stored))


def test_mixed_types_load_in_the_type_of_most_weights(save_phi3):
    _, directory = save_phi3(dtype=torch.bfloat16)
    state = load_file(directory / "model.safetensors")
    save_file({k: v.float() if v.ndim == 1 else v for k, v in state.items()}, directory / "model.safetensors")
    assert {parameter.dtype for parameter in load_model(directory).parameters()} == {torch.bfloat16}


def test_loaded_weights_do_not_change_with_the_file(save_phi3):
    _, directory = save_phi3()
    ours = load_model(directory)
    before = logits(ours)
    with (directory / "model.safetensors").open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\0" * 50_000)
    assert torch.equal(logits(ours), before)
    (directory / "model.safetensors").write_bytes(b"")
    assert torch.equal(logits(ours), before)


def test_requires_grad_is_kept(save_phi3):
    _, directory = save_phi3(tie_word_embeddings=True)
    with torch.device("meta"):
        model = CausalLM(load_config(directory))
    model.model.norm.requires_grad_(False)
    load_weights(model, directory)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.norm.weight"]


def test_lm_head_of_a_tied_model_may_be_stored_if_equal(save_phi3):
    theirs, directory = save_phi3(tie_word_embeddings=True)
    state = load_file(directory / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, directory / "model.safetensors")
    ours = load_model(directory)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)
    state["lm_head.weight"][3, 5] += 1
    save_file(state, directory / "model.safetensors")
    with pytest.raises(ModelError, match=r"E-MODEL-107 .* differ"):
        load_model(directory)


def test_embedding_of_a_tied_model_may_be_stored_as_lm_head(save_phi3):
    theirs, directory = save_phi3(tie_word_embeddings=True)
    state = load_file(directory / "model.safetensors")
    state["lm_head.weight"] = state.pop("model.embed_tokens.weight")
    save_file(state, directory / "model.safetensors")
    torch.testing.assert_close(logits(load_model(directory)), logits(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"], ids=["single", "sharded"])
def test_an_outline_has_one_parameter_in_memory_at_a_time(save_phi3, tied, shard_size):
    _, directory = save_phi3(tie_word_embeddings=tied, max_shard_size=shard_size, dtype=torch.bfloat16)
    outline, whole = weights.outline(directory), load_model(directory)
    seen = []
    for name, parameter in weights.each_parameter(outline, directory):
        assert torch.equal(parameter, whole.get_parameter(name))
        assert [one for one, value in outline.named_parameters() if not value.is_meta] == [name]
        seen.append(name)
    assert seen == [name for name, _ in whole.named_parameters()]
    assert all(value.is_meta and value.dtype == torch.bfloat16 for value in outline.parameters())


def test_an_outline_of_tied_weights_that_differ_is_refused(save_phi3):
    _, directory = save_phi3(tie_word_embeddings=True)
    state = load_file(directory / "model.safetensors")
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"] + 1}, directory / "model.safetensors")
    with pytest.raises(ModelError, match=r"E-MODEL-107 .* differ"):
        list(weights.each_parameter(weights.outline(directory), directory))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_costs_one_copy_in_memory(tmp_path, dtype):
    pytest.importorskip("resource")
    # 110 MB in bf16, in shards; measured in a process of its own, whose peak is nobody else's.
    config = DecoderConfig(16_000, 1024, 2048, 4, 16, 16, tie_word_embeddings=True)
    state = ((name, torch.zeros(parameter.shape)) for name, parameter in _meta(config).named_parameters())
    save_weights(state, tmp_path, config, dtype=torch.bfloat16, max_shard_bytes=40_000_000)
    code = f"""
import resource, torch
from pathlib import Path
from lorakeet.models.weights import load_model
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * {1 if sys.platform == "darwin" else 1024}
before = peak()
model = load_model(Path({str(tmp_path)!r}), dtype=torch.{dtype})
print((peak() - before) / sum(p.numel() * p.element_size() for p in model.parameters()))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Beside the model, one tensor is in flight: mapped and copied, or copied and cast. The largest is a third of it.
    assert float(run.stdout) < 1.45


def _meta(config):
    with torch.device("meta"):
        return CausalLM(config)


def test_names_that_do_not_fit_are_listed(save_phi3):
    _, directory = save_phi3()
    state = load_file(directory / "model.safetensors")
    for i in range(2):
        for name in ("self_attn.o_proj", "mlp.down_proj", "mlp.gate_up_proj"):
            del state[f"model.layers.{i}.{name}.weight"]
    state["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(1)
    state["model.norm.weight"] = torch.zeros(3)
    save_file(state, directory / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model(directory)
    text = str(caught.value)
    assert caught.value.code == "E-MODEL-66"
    assert "6 tensors missing (model.layers.0.self_attn.o_proj.weight" in text
    assert "and 1 more" in text
    assert "1 tensors not the model's (model.layers.0.self_attn.q_proj.weight)" in text
    assert "1 tensors of the wrong shape (model.norm.weight (3,) for (48,))" in text


def test_wrong_shape_is_refused_before_anything_is_loaded(save_phi3, edit_json):
    _, directory = save_phi3()
    edit_json(directory / "config.json", intermediate_size=96)
    model = _meta(load_config(directory))
    with pytest.raises(ModelError, match=r"E-MODEL-65 .*gate_up_proj\.weight \(160, 48\) for \(192, 48\)"):
        load_weights(model, directory)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_model_larger_than_the_free_memory_is_refused_before_anything_is_loaded(save_phi3, monkeypatch):
    _, directory = save_phi3()
    model = _meta(load_config(directory))
    needed = sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(weights, "free_bytes", lambda: 4 * needed - 1)
    with pytest.raises(ModelError, match=r"E-MODEL-186 .*float32.*--load-in-4bit"):
        load_weights(model, directory, dtype=torch.float32)
    assert all(parameter.is_meta for parameter in model.parameters())
    load_weights(model, directory, dtype=torch.bfloat16)
    monkeypatch.setattr(weights, "free_bytes", lambda: None)
    load_weights(_meta(load_config(directory)), directory, dtype=torch.float32)


def test_untied_model_without_lm_head_is_refused(save_phi3, edit_json):
    _, directory = save_phi3(tie_word_embeddings=True)
    edit_json(directory / "config.json", tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"E-MODEL-66 .*1 tensors missing \(lm_head\.weight\)"):
        load_model(directory)


def test_llama_weights_under_a_phi3_config_are_refused(save_phi3, tmp_path):
    _, directory = save_phi3()
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    load_model(tmp_path / "llama")
    shutil.copy(directory / "config.json", tmp_path / "llama")
    with pytest.raises(ModelError, match=r"E-MODEL-66 .*4 tensors missing .*10 tensors not the model's"):
        load_model(tmp_path / "llama")


class _Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickle_checkpoint_is_refused_unopened(save_phi3, tmp_path, name):
    _, directory = save_phi3()
    (directory / "model.safetensors").unlink()
    torch.save(_Canary(tmp_path / "opened"), directory / name)
    with pytest.raises(ModelError, match=rf"E-MODEL-63 .*pickle files \({name}\)"):
        load_model(directory)
    assert not (tmp_path / "opened").exists()


def test_directory_without_weights_is_refused(save_phi3):
    _, directory = save_phi3()
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"E-MODEL-108 .*no weights"):
        load_model(directory)


def _sharded(save_phi3):
    _, directory = save_phi3(max_shard_size="20KB")
    return directory, directory / "model.safetensors.index.json"


def test_missing_shard_is_refused(save_phi3):
    directory, _ = _sharded(save_phi3)
    shard = sorted(directory.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=rf"E-MODEL-73 .*shard {shard.name} is missing"):
        load_model(directory)


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", "", 5, None, "a\\b.safetensors"]
)
def test_shard_outside_the_directory_is_refused(save_phi3, edit_json, shard):
    directory, index = _sharded(save_phi3)
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map["model.norm.weight"] = shard
    edit_json(index, weight_map=weight_map)
    with pytest.raises(ModelError, match=r"E-MODEL-73 .*is no plain \.safetensors file name"):
        load_model(directory)


@pytest.mark.parametrize("weight_map", [None, {}, [], "model.safetensors"])
def test_index_without_weight_map_is_refused(save_phi3, edit_json, weight_map):
    directory, index = _sharded(save_phi3)
    edit_json(index, weight_map=weight_map)
    with pytest.raises(ModelError, match=r"E-MODEL-73 .*weight_map is missing"):
        load_model(directory)


def test_index_that_differs_from_its_shards_is_refused(save_phi3, edit_json):
    directory, index = _sharded(save_phi3)
    weight_map = json.loads(index.read_text())["weight_map"]
    del weight_map["model.norm.weight"]
    edit_json(index, weight_map=weight_map)
    with pytest.raises(ModelError, match=r"E-MODEL-73 .*differ in 1 tensors \(model\.norm\.weight\)"):
        load_model(directory)


def test_single_file_and_shards_together_are_refused(save_phi3):
    directory, _ = _sharded(save_phi3)
    shutil.copy(next(directory.glob("*.safetensors")), directory / "model.safetensors")
    with pytest.raises(ModelError, match=r"E-MODEL-109 .*holds both"):
        load_model(directory)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 40_000], ids=["single", "sharded"])
def test_saved_weights_load_in_transformers(save_phi3, tmp_path, tied, max_shard_bytes):
    theirs, directory = save_phi3(tie_word_embeddings=tied)
    ours = load_model(directory)
    # In another order than the file's, and with lm_head even where it is tied.
    state = sorted(ours.state_dict().items(), reverse=True)
    save_weights(state, tmp_path / "o", ours.config, dtype=torch.float32, max_shard_bytes=max_shard_bytes)
    files = sorted(file.name for file in (tmp_path / "o").iterdir())
    shards = [name for name in files if name.endswith(".safetensors")]
    if max_shard_bytes == 10**9:
        assert files == ["config.json", "model.safetensors"]
    else:
        assert len(shards) > 2
        assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
        assert all((tmp_path / "o" / name).stat().st_size < max_shard_bytes + 4096 for name in shards)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "o", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(again), logits(theirs))
    assert torch.equal(logits(load_model(tmp_path / "o")), logits(ours))


def test_saving_casts_and_notes_the_type(save_phi3, tmp_path):
    theirs, directory = save_phi3()
    ours = load_model(directory)
    save_weights(ours.state_dict().items(), tmp_path / "out", ours.config, dtype=torch.bfloat16)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.dtype == torch.bfloat16
    for name, parameter in theirs.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter.bfloat16())


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda state: state[1:], "E-MODEL-66", r"1 tensors missing \(model\.embed_tokens\.weight\)"),
        (lambda state: [*state, ("more", torch.zeros(1))], "E-MODEL-66", "more is not the model's"),
        (lambda state: [*state, state[-1]], "E-MODEL-66", "is given twice"),
        (lambda state: [*state[:-1], (state[-1][0], torch.zeros(2))], "E-MODEL-65", r"is \(2,\), expected"),
        (lambda state: [*state, ("lm_head.weight", state[0][1] + 1)], "E-MODEL-107", r"lm_head\.weight differs"),
    ],
    ids=["missing", "extra", "twice", "shape", "untied head"],
)
def test_saving_refuses_another_models_weights_and_leaves_nothing(save_phi3, tmp_path, change, code, said):
    _, directory = save_phi3(tie_word_embeddings=True)
    ours = load_model(directory)
    state = change(list(ours.named_parameters()))
    with pytest.raises(ModelError, match=f"{code} .*{said}"):
        save_weights(state, tmp_path / "out", ours.config, dtype=torch.float32, max_shard_bytes=40_000)
    assert list((tmp_path / "out").iterdir()) == []


def test_saving_over_a_model_is_refused(save_phi3):
    _, directory = save_phi3()
    ours = load_model(directory)
    with pytest.raises(ModelError, match=r"E-MODEL-48 .*already holds weights \(model\.safetensors\)"):
        save_weights(ours.state_dict().items(), directory, ours.config, dtype=torch.float32)


def test_saved_files_can_be_read_by_others(save_phi3, tmp_path):
    _, directory = save_phi3()
    ours = load_model(directory)
    save_weights(ours.state_dict().items(), tmp_path / "out", ours.config, dtype=torch.float32, max_shard_bytes=40_000)
    umask = os.umask(0)
    os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o666 & ~umask}


def test_fingerprint_is_the_weights_and_nothing_else(save_phi3):
    _, single = save_phi3("single")
    _, sharded = save_phi3("sharded", max_shard_size="20KB")
    _, bf16 = save_phi3("bf16", dtype=torch.bfloat16)
    assert fingerprint(single) == fingerprint(sharded)
    assert fingerprint(single) != fingerprint(bf16)
    assert len(fingerprint(single)) == 64


def test_fingerprint_sees_one_flipped_bit_and_one_renamed_tensor(save_phi3):
    _, directory = save_phi3()
    file = directory / "model.safetensors"
    seen = [fingerprint(directory)]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    seen.append(fingerprint(directory))
    state = load_file(file)
    state["model.norm.weighs"] = state.pop("model.norm.weight")
    save_file(state, file)
    seen.append(fingerprint(directory))
    assert len(set(seen)) == 3


def test_fingerprint_is_remembered_while_the_files_stay(save_phi3, own_cache):
    _, directory = save_phi3("remembered")
    first = fingerprint(directory)
    memories = [m for m in (own_cache / "hashes").iterdir() if str(directory) in m.read_text()]
    assert len(memories) == 1
    kept = json.loads(memories[0].read_text())
    memories[0].write_text(json.dumps({**kept, "hash": "remembered"}))
    assert fingerprint(directory) == "remembered"
    os.utime(directory / "model.safetensors", (1, 1))
    assert fingerprint(directory) == first


def test_fingerprint_works_without_a_cache(save_phi3, monkeypatch, tmp_path):
    _, directory = save_phi3()
    expected = fingerprint(directory)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path / "file" / "below"))
    assert fingerprint(directory) == expected


def test_saved_weights_are_forced_to_disk_under_their_names(save_phi3, tmp_path, monkeypatch):
    """A loss of power after saving must not leave a directory whose weights have no name yet."""
    synced = []
    monkeypatch.setattr(durable, "sync_directory", lambda path: synced.append(sorted(file.name for file in path.iterdir())))
    model = load_model(save_phi3()[1])
    save_weights(model.named_parameters(), tmp_path / "saved", model.config, dtype=torch.float32)
    assert ["model.safetensors"] in synced
