"""Adapters for PEFT, vLLM and split bases: the same logits, and faults that the gate catches."""

import dataclasses
import json
from functools import partial

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lorakeet.data.templates.template import template_for
from lorakeet.data.tokenizer import load_tokenizer
from lorakeet.errors import AdapterError, ExportError
from lorakeet.exports.artefact import Options, Source
from lorakeet.exports.export import describe, export
from lorakeet.exports.formats import find_format
from lorakeet.exports.peft_split import split_base
from lorakeet.exports.probes import choose_probes
from lorakeet.models import weights
from tests.exports.test_merge import IDS, our_logits, relative

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PATTERNS = {"use_rslora": True, "alpha_pattern": {"down_proj": 5}, "rank_pattern": {"o_proj": 2}}
LONGROPE = {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}}


@pytest.fixture
def parts(base, adapter, monkeypatch):
    """Return a run's parts around a tiny model, and the live model; few probes are enough here."""
    monkeypatch.setattr("lorakeet.exports.export.choose_probes", partial(choose_probes, count=4))
    monkeypatch.setattr("lorakeet.exports.gate.LONG", 6)

    def build(of_base=None, **changes):
        directory = base(**(of_base or {}))
        saved, live = adapter(directory, **changes)
        tokenizer = load_tokenizer(directory)
        return Source(directory, saved, tokenizer, template_for(tokenizer), None, "org/tiny", "mine"), live

    return build


def test_dora_goes_through_peft_and_merged_and_is_refused_elsewhere(tmp_path, parts):
    source, live = parts(use_dora=True, use_rslora=True)
    for name in ("peft", "peft-split", "hf"):
        exported = export(source, find_format(name), tmp_path / name)
        assert (exported.parity.top1, exported.failures, exported.unchecked) == (1, (), "")
    assert relative(adapted_logits(split_base(source), tmp_path / "peft-split"), our_logits(live)) < 1e-5
    for name, text in (("vllm", "E-EXP-235 .*it takes no DoRA"), ("gguf-adapter", r"E-EXP-206 .*trained lengths \(DoRA\)")):
        with pytest.raises(ExportError, match=text):
            export(source, find_format(name), tmp_path / name)


def adapted_logits(model, adapter):
    with torch.inference_mode():
        return peft.PeftModel.from_pretrained(model, adapter).eval()(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("changes", [{}, PATTERNS])
@pytest.mark.parametrize("name", ["peft", "vllm", "peft-split"])
def test_peft_computes_the_live_models_logits(tmp_path, parts, name, changes):
    source, live = parts(**changes)
    exported = export(source, find_format(name), tmp_path / "out")
    assert (exported.parity.top1, exported.failures, exported.unchecked) == (1, (), "")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(source.base, dtype=torch.float32)
    model = split_base(source) if name == "peft-split" else loaded
    assert relative(adapted_logits(model, tmp_path / "out"), our_logits(live)) < 1e-5
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("of_base", [{"sliding_window": 8}, {**LONGROPE, "original_max_position_embeddings": 32}])
def test_a_split_base_is_the_base(parts, of_base):
    source, _ = parts(of_base)
    with torch.inference_mode():
        found = split_base(source)(torch.tensor([IDS])).logits[0]
    assert relative(found, our_logits(weights.load_model(source.base))) < 1e-5


def test_vllm_is_given_one_rank_and_one_scale(tmp_path, parts):
    source, _ = parts(**PATTERNS)
    exported = export(source, find_format("vllm"), tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (fields["r"], fields["rank_pattern"], fields["alpha_pattern"], fields["use_rslora"]) == (4, {}, {}, False)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name} == {4}
    assert "folded into B" in "\n".join(describe(exported))


@pytest.mark.parametrize(("r", "rounded"), [(1, 1), (4, 8), (8, 8), (17, 32), (300, 320)])
def test_vllm_is_served_with_an_allowed_rank(tmp_path, parts, r, rounded):
    source, _ = parts(r=r)
    written = find_format("vllm").write(source, _made(tmp_path / "out"), Options())
    assert written.commands == (f"vllm serve org/tiny --enable-lora --max-lora-rank {rounded} --lora-modules mine={{path}}",)


def test_vllm_keeps_longrope_to_its_original_length(tmp_path, parts):
    source, _ = parts({**LONGROPE, "original_max_position_embeddings": 32})
    written = find_format("vllm").write(source, _made(tmp_path / "out"), Options())
    assert written.commands[0].endswith(" --max-model-len 32")
    assert any("The context is kept to 32 tokens" in note for note in written.notes)


@pytest.mark.parametrize("changes", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens"]}, {"r": 513}])
def test_what_vllm_refuses_is_said_before_anything_is_written(tmp_path, parts, changes):
    source, _ = parts(**changes)
    with pytest.raises(ExportError, match="E-EXP-235"):
        export(source, find_format("vllm"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rejects_a_split_of_what_is_not_fused(tmp_path, parts):
    source, _ = parts(target_modules=["o_proj"])
    with pytest.raises(ExportError, match=r"E-EXP-236 .*no fused layer"):
        export(source, find_format("peft-split"), tmp_path / "out")


def test_rejects_a_split_where_no_layout_has_it(tmp_path, parts):
    source, _ = parts({"partial_rotary_factor": 0.5})
    with pytest.raises(ExportError, match=r"E-EXP-236 .*part of each head"):
        export(source, find_format("peft-split"), tmp_path / "out")


def test_rejects_half_an_adapter(tmp_path, parts):
    source, _ = parts()
    (source.adapter / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match="E-ADPT-105"):
        export(source, find_format("peft"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def permuted(directory, head_dim=8):
    """Interleave the rows of q and k as Llama's original checkpoints have them."""
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, rows in tensors.items():
        if "q_proj.lora_B" in name or "k_proj.lora_B" in name:
            heads = rows.view(-1, 2, head_dim // 2, rows.shape[1])
            tensors[name] = heads.transpose(1, 2).reshape(rows.shape).contiguous()
    save_file(tensors, file)


def alpha_lost(directory):
    _configure(directory, lora_alpha=json.loads((directory / "adapter_config.json").read_text())["r"], alpha_pattern={})


def rslora_lost(directory):
    _configure(directory, use_rslora=False)


def swapped(directory):
    """Exchange gate and up."""
    tensors = load_file(directory / "adapter_model.safetensors")

    def other(name):
        return name.replace("gate_proj", "up_proj") if "gate_proj" in name else name.replace("up_proj", "gate_proj")

    save_file({other(name): tensor for name, tensor in tensors.items()}, directory / "adapter_model.safetensors")


def _configure(directory, **changes):
    file = directory / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "fault"),
    [("peft-split", permuted), ("peft-split", swapped), ("peft", alpha_lost), ("peft", rslora_lost), ("vllm", rslora_lost)],
)
def test_the_gate_catches(tmp_path, parts, name, fault):
    source, _ = parts(use_rslora=fault is rslora_lost)
    form = find_format(name)

    def write(*arguments):
        written = form.write(*arguments)
        fault(arguments[1])
        return written

    with pytest.raises(ExportError, match="E-EXP-200"):
        export(source, dataclasses.replace(form, write=write), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stops_that_the_base_lacks_are_named(tmp_path, parts):
    source, _ = parts()
    (source.base / "generation_config.json").write_text('{"eos_token_id": 3}')
    written = find_format("peft").write(source, _made(tmp_path / "out"), Options())
    assert any("<|end|>" in note and "eos_token_id" in note for note in written.notes)


def _made(directory):
    directory.mkdir()
    return directory
