"""Every export: written into a draft, proven there with its consumer's own loader, and only then in its place."""

import dataclasses
import json

import pytest

from lorakeet.data.conversation import Conversation, Message
from lorakeet.errors import ConfigError, ExportError
from lorakeet.exports.artefact import Missing, Options
from lorakeet.exports.export import RECORD, describe, export
from lorakeet.exports.formats import FORMATS, find_format
from lorakeet.exports.probes import NUM_PROBES, choose_probes

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


def test_what_cannot_be_checked_is_said(tmp_path, source):
    form = dataclasses.replace(find_format("hf"), read=lambda source, directory: Missing("tool", "pip install tool"))
    exported = export(source(), form, tmp_path / "out")
    assert exported.parity is None
    assert "tool is not installed" in exported.unchecked
    assert json.loads((tmp_path / "out" / RECORD).read_text())["unchecked"] == exported.unchecked


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
