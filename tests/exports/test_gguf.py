"""GGUF files: llama.cpp itself loads them and makes the ids, logits and stops of the live model, or the gate says no."""

import pytest
import torch

from lorakeet.errors import ExportError
from lorakeet.exports import gate, gguf_adapter, gguf_families, gguf_model, gguf_tokenizer
from lorakeet.exports.artefact import EXACT, Options
from lorakeet.exports.export import export
from lorakeet.exports.formats import find_format
from lorakeet.exports.gguf_tokenizer import model_name
from lorakeet.exports.llama_cpp import LlamaCppReader
from lorakeet.exports.probes import NUM_PROBES, choose_probes
from tests.data.conftest import train_bpe, trained, with_template

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

GGUF, ADAPTER = find_format("gguf"), find_format("gguf-adapter")
LONGROPE = {
    "original_max_position_embeddings": 512,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.3, 1.6, 1.9], "long_factor": [2.0, 4.0, 8.0, 16.0]},
}


@pytest.fixture
def phi3_source(source, phi3):
    """Return a run over a tiny random Phi-3 with the real vocabulary."""

    def build(**changes):
        return source(tokenizer=phi3, base_name="microsoft/Phi-3-mini-4k-instruct", **changes)

    return build


@pytest.fixture
def proven(tmp_path, monkeypatch):
    """Write a run in a format and return what a short gate says against it, in one text."""
    monkeypatch.setattr(gate, "LONG", 8)

    def prove(parts, form=GGUF, dtype="f32"):
        directory = tmp_path / "artefact"
        directory.mkdir()
        form.write(parts, directory, Options(dtype))
        parity = gate.measure(parts, form.read(parts, directory), choose_probes(parts, count=12))
        return "; ".join(gate.failures(parity, EXACT))

    return prove


def test_a_phi3_in_llama_cpp_has_the_ids_and_logits_of_the_live_model(tmp_path, phi3_source):
    parts = phi3_source()
    parity = export(parts, GGUF, tmp_path / "tuned.gguf", Options("f32")).parity
    assert (parity.num_equal_ids, parity.num_probes, parity.missing_stops) == (NUM_PROBES, NUM_PROBES, ())
    assert parity.max_kl < 1e-5
    assert parity.strength == pytest.approx(1, abs=1e-3)
    assert sorted(path.name for path in tmp_path.glob("tuned*")) == ["tuned.gguf", "tuned.lorakeet.json"]
    reader = LlamaCppReader(tmp_path / "tuned.gguf", parts.config)
    (ids,) = choose_probes(parts, count=1).ids
    (answer,) = reader.answer([ids], 1, num_top=parts.config.vocab_size)
    reader.close()
    (logits_NV,) = gate.next_token_logits(parts.load(torch.float32), [(ids, answer.ids)])
    live_NV = logits_NV.log_softmax(-1)
    theirs_NV = torch.empty_like(live_NV).scatter_(1, answer.top_ids_NK, answer.top_logprobs_NK)
    assert (theirs_NV - live_NV).abs().max() < 1e-3


def test_the_real_vocabulary_is_written_as_llama_cpps_own_file_has_it(data_dir, phi3):
    theirs = gguf.GGUFReader(data_dir / "phi3-tokenizer" / "ggml-vocab-phi-3.gguf")
    tokens, scores, _ = gguf_tokenizer._vocabulary(phi3, 32064)
    assert [*theirs.fields["tokenizer.ggml.tokens"].contents()][:32011] == tokens[:32011]
    their_scores = theirs.fields["tokenizer.ggml.scores"].contents()
    # A single character is no merge; and runs of spaces all have one score there.
    merged = [i for i in range(259, 32000) if scores[i] < 0 and their_scores[i] > -1e8]
    assert len(merged) > 25_000
    assert sorted(merged, key=lambda i: -scores[i]) == sorted(merged, key=lambda i: -their_scores[i])
    tiny = trained("bpe")
    tokens, _, types = gguf_tokenizer._vocabulary(tiny, tiny.vocab_size + 2)
    assert (tokens[-2:], types[-2:]) == ([f"[PAD{tiny.vocab_size + i}]" for i in range(2)], [5, 5])


@pytest.mark.parametrize("lora", [{"use_rslora": True}, {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"qkv_proj": 3}}])
@pytest.mark.parametrize("form", [GGUF, ADAPTER], ids=["merged", "adapter"])
def test_every_kind_of_scaling_arrives(source, proven, lora, form):
    assert proven(source(lora=lora, **LONGROPE, tie_word_embeddings=True, partial_rotary_factor=1.0), form) == ""


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_every_type_is_what_the_package_gguf_makes_of_it(tmp_path, source, dtype):
    parts = source(intermediate_size=64)
    GGUF.write(parts, tmp_path, Options(dtype))
    (file,) = tmp_path.glob("*.gguf")
    reader = gguf.GGUFReader(file)
    weights = dict(parts_tensors(parts))
    names = {f"{gguf_families.gguf_name(name.removesuffix('.weight'), parts.config)}.weight": name for name in weights}
    assert {tensor.name for tensor in reader.tensors} == set(names)
    for tensor in reader.tensors:
        found = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        exact = weights[names[tensor.name]]
        bits = {"f16": 11, "bf16": 8, "q8_0": 7, "q5_1": 4, "q5_0": 4, "q4_1": 3, "q4_0": 3}[dtype]
        assert (found - exact).abs().max() <= exact.abs().max() * 2.0**-bits


CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(("words", "name"), [(CL100K, "dbrx"), (O200K, "gpt-4o")], ids=["phi-4", "phi-4-mini"])
def test_words_are_found_as_phi4_and_phi4_mini_find_them(source, proven, words, name):
    tokenizer = with_template(train_bpe(rstrip=True, words=words), "phi4-mini")
    assert gguf_tokenizer.pre_name(tokenizer) == name
    small = {**LONGROPE["rope_scaling"], "short_factor": [1.0, 1.3, 1.6], "long_factor": [2.0, 4.0, 8.0]}
    changes = {**LONGROPE, "rope_scaling": small, "partial_rotary_factor": 0.75, "tie_word_embeddings": True}
    assert proven(source(tokenizer=tokenizer, **changes)) == ""


def parts_tensors(parts):
    model = parts.load()
    return gguf_model.merged_tensors(model, torch.float32, model.named_parameters())


def swapped(tensors, size):
    for name, tensor in tensors:
        yield name, torch.cat([tensor[size:], tensor[:size]]) if name.endswith("gate_up_proj.weight") else tensor


def permuted(tensors):
    """Do what a converter for the llama architecture does with q and k: rotating pairs side by side."""
    for name, tensor in tensors:
        if name.endswith("qkv_proj.weight"):
            q, rest = tensor[:32], tensor[32:]
            tensor = torch.cat([q.view(4, 2, 4, 32).transpose(1, 2).reshape(q.shape), rest])
        yield name, tensor


def without_scaling(model, *rest):
    for module in model.modules():
        if hasattr(module, "scaling") and hasattr(module, "lora_A"):
            module.scaling = 1.0
    return MERGED(model, *rest)


MERGED, ADD_TOKENIZER, LORA = gguf_model.merged_tensors, gguf_model.add_tokenizer, gguf_adapter.lora_tensors
NAMED, ROPE, JINJA = gguf_tokenizer.special_ids, gguf_model.rope_factors, gguf_model.jinja_text


def with_bos(metadata, *args):
    ADD_TOKENIZER(metadata, *args)
    metadata.kv_data[0]["tokenizer.ggml.add_bos_token"].value = True


FAULTS = {
    "a stop is missing": (
        "answers do not end at <|system|>",
        {},
        (gguf_tokenizer, "special_ids", lambda t: {k: v for k, v in NAMED(t).items() if k not in ("eom", "eot")}),
    ),
    "a BOS too many": ("other token ids", {}, (gguf_model, "add_tokenizer", with_bos)),
    "gate and up swapped": ("nats", {}, (gguf_model, "merged_tensors", lambda *m: swapped(MERGED(*m), 48))),
    "q permuted": ("nats", {}, (gguf_model, "merged_tensors", lambda *m: permuted(MERGED(*m)))),
    "alpha lost in merging": ("times its strength", {}, (gguf_model, "merged_tensors", without_scaling)),
    "LongRoPE's factors swapped": (
        "nats",
        LONGROPE,
        (gguf_model, "rope_factors", lambda c: [(n, t) for (n, _), (_, t) in zip(ROPE(c), [*ROPE(c)][::-1], strict=True)]),
    ),
    "another model's tokenizer": (
        "other token ids",
        {},
        (gguf_model, "add_tokenizer", lambda m, t, j, v: ADD_TOKENIZER(m, trained("bpe-chatml"), j, v)),
    ),
    "a template that drops the system prompt": (
        "other token ids",
        {},
        (gguf_model, "jinja_text", lambda s: JINJA(s).replace("== 'system'", "== 'nobody'")),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_gate_catches(source, proven, monkeypatch, fault):
    said, changes, patch = FAULTS[fault]
    tokenizer = trained("bpe")
    if "stop" in fault:
        stops = tokenizer.stop_ids | {tokenizer.control_tokens["<|system|>"].id}
        tokenizer = type(tokenizer)(**{**tokenizer._state(), "stop_ids": stops})
    parts = source(tokenizer=tokenizer, **changes)
    monkeypatch.setattr(*patch)
    assert said in proven(parts)


def test_the_gate_catches_a_name_that_llama_cpp_goes_by(phi3_source, proven, monkeypatch):
    monkeypatch.setattr(gguf_model, "model_name", lambda tokenizer, name: "tuned")
    assert "other token ids" in proven(phi3_source())


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True}], ids=["alpha", "rsLoRA"])
def test_the_gate_catches_scaling_lost_in_an_adapter(source, proven, monkeypatch, lora):
    def lossy(model):
        _, tensors = LORA(model)
        return 12.0 if lora else 4.0, tensors  # lora_alpha as it stands, or none

    monkeypatch.setattr(gguf_adapter, "lora_tensors", lossy)
    assert "times its strength" in proven(source(lora=lora), ADAPTER)


def test_names_make_llama_cpp_strip_white_space_as_training_did(phi3, phi3_bare):
    assert model_name(phi3, "tuned") == "Phi-3 tuned"
    assert model_name(phi3, "my-Phi3-tuned") == "my-Phi3-tuned"
    assert model_name(phi3_bare, "Phi-3-mini") == "Phi 3-mini"
    assert model_name(trained("bpe-rstrip"), "not-phi3") == "not-Phi 3"


def test_what_a_lora_file_cannot_hold_is_refused_by_name(tmp_path, source):
    parts = source(lora={"modules_to_save": ["lm_head"]})
    with pytest.raises(ExportError, match=r"E-EXP-206.*the saved module lm_head"):
        export(parts, ADAPTER, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out*"))


def test_an_unknown_tokenizer_is_refused(tmp_path, source):
    with pytest.raises(ExportError, match=r"E-EXP-204.*Unigram"):
        export(source(tokenizer=trained("unigram-always")), GGUF, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out*"))


def test_without_llama_cpp_the_artefact_stays_and_says_so(tmp_path, source, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exported = export(source(), GGUF, tmp_path / "out")
    assert "pip install 'lorakeet[llamacpp]'" in exported.unchecked
    assert len(list((tmp_path / "out").glob("*.gguf"))) == 1


def test_a_file_that_llama_cpp_cannot_load_is_one_line(tmp_path, source):
    parts = source()
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF but no more")
    with pytest.raises(ExportError, match=r"E-EXP-205.*cannot load it"):
        LlamaCppReader(file, parts.config)
