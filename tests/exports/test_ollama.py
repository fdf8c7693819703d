"""A folder for Ollama: its template renders what training rendered, with every stop and the system prompt."""

import json
import re

import pytest

from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.templates.known import LAYOUTS
from lorakeet.errors import DataError, ExportError
from lorakeet.exports import gate, ollama
from lorakeet.exports.artefact import EXACT, Options
from lorakeet.exports.chat_template import jinja_of
from lorakeet.exports.formats import find_format
from lorakeet.exports.go_template import go_text, render_go
from lorakeet.exports.probes import choose_probes
from tests.data.conftest import trained

OLLAMA = find_format("ollama")
SYSTEM = (Message("system", "Be brief.\nAnd kind."),)
TURNS = (Message("user", "Hi\n there"), Message("assistant", "Yes?"), Message("user", "Go on. {{ .x }}"))
CONVERSATIONS = [Conversation(TURNS[-1:]), Conversation(TURNS), Conversation(SYSTEM + TURNS)]


def rendered(layout, conversation):
    return "".join(piece.text for piece in layout.render(conversation, add_generation_prompt=True))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_in_go_and_in_jinja_renders_what_training_renders(name):
    from transformers.utils.chat_template_utils import render_jinja_template

    layout = LAYOUTS[name]
    for conversation in CONVERSATIONS:
        try:
            expected = rendered(layout, conversation)
        except DataError:
            assert name in ("phi3-mini-2024-04", "phi3-medium", "phi3-medium-no-bos")
            continue
        assert render_go(go_text(layout), conversation) == expected
        messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
        (theirs,), _ = render_jinja_template([messages], chat_template=jinja_of(layout), add_generation_prompt=True)
        assert theirs == expected


def test_an_answer_that_is_to_be_continued_is_left_open():
    begun = Conversation((Message("user", "Hi"), Message("assistant", "Well")))
    assert render_go(go_text(LAYOUTS["chatml"]), begun) == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWell")


def test_a_folder_is_proven_with_its_own_template(tmp_path, source):
    pytest.importorskip("xllamacpp")
    parts = source()
    written = OLLAMA.write(parts, tmp_path / "", Options("f32"))
    modelfile = (tmp_path / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./mine-f32.gguf\nTEMPLATE ")
    assert 'SYSTEM """Be kind."""' in modelfile
    stops = {json.loads(stop) for stop in re.findall("^PARAMETER stop (.*)$", modelfile, re.MULTILINE)}
    assert stops == {parts.tokenizer.decode([stop]) for stop in parts.tokenizer.stop_ids}
    assert "ollama create mine" in written.commands[0]
    probes = choose_probes(parts)
    assert gate.failures(gate.measure(parts, OLLAMA.read(parts, tmp_path), probes), EXACT) == []
    (tmp_path / "Modelfile").write_text(modelfile.replace('"system"', '"nobody"'))
    failed = gate.failures(gate.measure(parts, OLLAMA.read(parts, tmp_path), choose_probes(parts, count=12)), EXACT)
    assert "other token ids" in failed[0]


def test_base_and_adapter_apart_on_request(tmp_path, source):
    pytest.importorskip("xllamacpp")
    parts = source()
    written = OLLAMA.write(parts, tmp_path, Options("f32", adapter=True))
    assert "FROM ./base.gguf\nADAPTER ./mine-lora-f32.gguf\n" in (tmp_path / "Modelfile").read_text()
    assert any("0.34.1" in note for note in written.notes)
    assert gate.failures(gate.measure(parts, OLLAMA.read(parts, tmp_path), choose_probes(parts, count=4)), EXACT) == []


def test_what_a_modelfile_cannot_say_is_refused(tmp_path, source):
    parts = source(tokenizer=trained("bpe"))
    with pytest.raises(ExportError, match=r"E-EXP-204.*the system prompt"):
        ollama._quoted('Say """hello"""', "the system prompt")
    assert parts.template.name == "phi3-mini"
