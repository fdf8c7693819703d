"""Every export: written into a draft, proven there with its consumer's own loader, and only then in its place."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.templates.template import template_for
from lorakeet.errors import ConfigError, DataError, ExportError
from lorakeet.exports import gate
from lorakeet.exports.artefact import Missing, Options
from lorakeet.exports.export import describe, export
from lorakeet.exports.formats import FORMATS, find_format
from lorakeet.exports.probes import NUM_PROBES, choose_probes
from lorakeet.rundir.provenance import RECORD
from tests.data.conftest import trained

ROWS = [Conversation((Message("user", f"Add {i} and 3."), Message("assistant", f"It is {i + 3}."))) for i in range(3)]
UNSAYABLE = Conversation((Message("user", "What does <|end|> mean?"), Message("assistant", "The end.")))


def test_the_probes_begin_with_the_runs_rows_and_leave_out_what_no_other_program_could_read(source):
    probes = choose_probes(source(rows=[*ROWS, UNSAYABLE]))
    assert len(probes.conversations) == len(probes.ids) == len(set(probes.conversations)) == NUM_PROBES
    assert (probes.num_rows, probes.num_unsayable) == (3, 1)
    assert [row.messages for row in probes.conversations[:3]] == [row.messages[:1] for row in ROWS]
    made_up = probes.conversations[3:]
    assert any(len(row.messages) > 3 for row in made_up)
    assert sum(row.messages[0].content == "Be kind." for row in made_up) > 5
    texts = "".join(message.content for row in made_up for message in row.messages)
    assert "\n\n" in texts
    assert not texts.isascii()
    assert "<|this|>" in texts


def test_an_artefact_is_proven_and_says_what_it_is_made_of(tmp_path, source):
    parts = source(rows=ROWS)
    exported = export(parts, find_format("hf"), tmp_path / "out")
    parity = exported.parity
    assert (parity.num_equal_ids, parity.num_probes, parity.num_rows) == (NUM_PROBES, NUM_PROBES, 3)
    assert (parity.missing_stops, exported.failures, exported.unchecked) == ((), (), "")
    assert (parity.top1, parity.greedy) == (1, 1)
    assert parity.max_kl < 1e-6
    assert parity.strength == pytest.approx(1, abs=1e-4)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["base"] == {"name": "org/tiny", "sha256": parts.base_hash}
    assert record["parity"] == json.loads(json.dumps(dataclasses.asdict(parity)))
    assert set(record["files"]) == {file.name for file in (tmp_path / "out").iterdir()} - {RECORD}
    assert f"prompt ids equal {NUM_PROBES}/{NUM_PROBES}" in "\n".join(describe(exported))


def test_a_failing_artefact_stays_only_by_force(tmp_path, source):
    parts = source()
    form = find_format("hf")

    def write_without_adapter(source, directory, options):
        written = form.write(source, directory, options)
        (directory / "model.safetensors").write_bytes((source.base / "model.safetensors").read_bytes())
        return written

    broken = dataclasses.replace(form, write=write_without_adapter)
    with pytest.raises(ExportError, match=r"E-EXP-200.*arrived with -?0.00 times its strength"):
        export(parts, broken, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "cache"]
    exported = export(parts, broken, tmp_path / "out", force=True)
    assert exported.failures
    assert json.loads((tmp_path / "out" / RECORD).read_text())["failures"] == list(exported.failures)


def test_weights_of_few_bits_that_lose_the_adapter_name_the_way_out(tmp_path, source):
    parts, form = source(), find_format("hf")

    def write_rounded_away(source, directory, options):
        written = form.write(source, directory, options)
        (directory / "model.safetensors").write_bytes((source.base / "model.safetensors").read_bytes())
        return dataclasses.replace(written, dtype="q4_1")

    with pytest.raises(ExportError, match=r"E-EXP-200") as refused:
        export(parts, dataclasses.replace(form, write=write_rounded_away), tmp_path / "out")
    assert "q4_1 rounds too much of this model away: take q8_0, or --format gguf-adapter" in refused.value.fix


def test_an_export_killed_between_its_two_names_is_made_again_and_a_record_of_yours_stays(tmp_path, source, monkeypatch):
    pytest.importorskip("gguf")
    form = dataclasses.replace(find_format("gguf"), read=lambda source, directory: Missing("tool", "pip install tool"))
    file, record, rename = tmp_path / "mine.gguf", tmp_path / "mine.lorakeet.json", os.rename

    def killed_at_the_file(start, end):
        if str(end) == str(file):
            raise KeyboardInterrupt
        rename(start, end)

    monkeypatch.setattr("lorakeet.exports.export.os.rename", killed_at_the_file)
    with pytest.raises(KeyboardInterrupt):
        export(source(), form, file)
    assert (file.exists(), record.exists()) == (False, True)
    monkeypatch.setattr("lorakeet.exports.export.os.rename", rename)
    export(source(), form, file)
    assert (file.exists(), record.exists()) == (True, True)
    file.unlink()
    with pytest.raises(ConfigError, match=r"E-CFG-48 \S+mine.lorakeet.json exists"):
        export(source(), form, file)


def test_what_cannot_be_checked_is_said(tmp_path, source):
    form = dataclasses.replace(find_format("hf"), read=lambda source, directory: Missing("tool", "pip install tool"))
    exported = export(source(), form, tmp_path / "out")
    assert exported.parity is None
    assert "tool is not installed" in exported.unchecked
    assert json.loads((tmp_path / "out" / RECORD).read_text())["unchecked"] == exported.unchecked


def test_where_the_model_does_not_fit_into_memory_nothing_is_proven_and_that_is_said(tmp_path, source, monkeypatch):
    monkeypatch.setattr("lorakeet.exports.export.free_bytes", lambda: 400_000_000)
    exported = export(source(), find_format("hf"), tmp_path / "out")
    assert (exported.parity, exported.failures) == (None, ())
    assert any(line.startswith("Not proven: loading the model takes 50") and "400 MB" in line for line in describe(exported))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_of_a_large_model_a_few_prompts_are_answered_and_that_is_said(tmp_path, source, monkeypatch):
    monkeypatch.setattr(gate, "MOST_WORK", 0)
    exported = export(source(), find_format("hf"), tmp_path / "out")
    assert (exported.parity.num_equal_ids, exported.parity.top1) == (NUM_PROBES, 1)
    assert exported.parity.num_positions <= gate.NUM_FEW * gate.FEW
    assert any("only the 3 shortest prompts were answered, with 8 tokens each" in line for line in describe(exported))


def test_rows_that_are_gone_cost_their_probes_and_one_line(tmp_path, source, monkeypatch):
    def gone():
        raise DataError("E-DATA-1", "no such file", place="rows.jsonl")

    monkeypatch.setattr(gate, "MOST_WORK", 0)
    exported = export(dataclasses.replace(source(), rows=gone), find_format("hf"), tmp_path / "out")
    assert (exported.parity.num_rows, exported.parity.num_equal_ids) == (0, NUM_PROBES)
    (line,) = [line for line in describe(exported) if "E-DATA-1" in line]
    assert "only built-in ones" in line


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["hf", "peft", "vllm"])
def test_an_artefact_brings_the_template_of_its_run_not_of_its_base(tmp_path, source, monkeypatch, name):
    monkeypatch.setattr(gate, "MOST_WORK", 0)
    parts = source()
    parts = dataclasses.replace(parts, template=template_for(parts.tokenizer, name="phi3-medium-no-bos"))
    parity = export(parts, find_format(name), tmp_path / "out").parity
    assert parity.num_equal_ids == parity.num_probes
    base_template = (parts.base / "chat_template.jinja").read_text()
    assert (tmp_path / "out" / "chat_template.jinja").read_text() != base_template


def without_a_stop(directory):
    (directory / "generation_config.json").write_text('{"eos_token_id": 3}')


def with_two_bos(directory):
    file = directory / "chat_template.jinja"
    file.write_text("{{ '<|endoftext|>' }}" + file.read_text())


def without_system_prompts(directory):
    file = directory / "chat_template.jinja"
    file.write_text("{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + file.read_text())


def with_another_tokenizer(directory):
    (directory / "tokenizer.json").write_text(json.dumps(trained("bpe-chatml").spec))


def with_gate_and_up_swapped(directory):
    _change_weights(directory, "gate_up_proj", lambda rows: rows.roll(len(rows) // 2, 0))


def with_q_permuted(directory):
    def permuted(rows):
        q, rest = rows[:32], rows[32:]
        return torch.cat([q.view(4, 2, 4, 32).transpose(1, 2).reshape(q.shape), rest])

    _change_weights(directory, "qkv_proj", permuted)


def with_longrope_swapped(directory):
    file = directory / "config.json"
    config = json.loads(file.read_text())
    for rope in (config.get("rope_scaling"), config.get("rope_parameters")):
        if rope:
            rope["short_factor"], rope["long_factor"] = rope["long_factor"], rope["short_factor"]
    file.write_text(json.dumps(config))


def _change_weights(directory, layer, change):
    file = directory / "model.safetensors"
    tensors = {name: change(tensor) if layer in name else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


FAULTS = {
    without_a_stop: "answers do not end at",
    with_two_bos: "other token ids",
    without_system_prompts: "other token ids",
    with_another_tokenizer: "other token ids",
    with_gate_and_up_swapped: "nats",
    with_q_permuted: "nats",
    with_longrope_swapped: "nats",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_gate_catches(tmp_path, source, monkeypatch, fault):
    monkeypatch.setattr(gate, "MOST_WORK", 0)
    form = find_format("hf")
    rope = {"type": "longrope", "short_factor": [1.0, 1.3, 1.6, 1.9], "long_factor": [2.0, 4.0, 8.0, 16.0]}

    def write(source, directory, options):
        written = form.write(source, directory, options)
        fault(directory)
        return written

    parts = source(original_max_position_embeddings=512, rope_scaling=rope)
    with pytest.raises(ExportError, match=f"E-EXP-200.*{FAULTS[fault]}"):
        export(parts, dataclasses.replace(form, write=write), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "cache"]


def test_bad_requests_are_refused_before_anything_is_written(tmp_path, source):
    parts, form = source(), find_format("hf")
    with pytest.raises(ExportError, match=r"E-EXP-201.*Did you mean hf"):
        find_format("hff")
    with pytest.raises(ExportError, match="E-EXP-202"):
        export(parts, form, tmp_path / "out", Options(dtype="q9"))
    with pytest.raises(ExportError, match="E-EXP-203"):
        export(parts, form, tmp_path / "out.gguf")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="E-CFG-48"):
        export(parts, form, tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "cache", "taken"]
    assert set(FORMATS) >= {"hf"}


def test_the_live_model_answers_with_the_adapter_on_its_head(base, adapter):
    """In one pass with other texts, as it does on each text alone."""
    _, live = adapter(base(torch.float32), target_modules=["lm_head", "qkv_proj"])
    exchanges = [([1, 5, 9], [7, 8]), ([1, 6], [4, 3, 11])]
    found = gate.next_token_logits(live, exchanges)
    for (prompt, answer), logits_NV in zip(exchanges, found, strict=True):
        ids = torch.tensor([*prompt, *answer[:-1]])
        with torch.inference_mode():
            hidden = live(ids, torch.arange(len(ids)), torch.tensor([0, len(ids)], dtype=torch.int32))
            torch.testing.assert_close(logits_NV, live.logits(hidden)[len(prompt) - 1 :])
