"""Pushing to the hub, with its real client, against a stand-in of its HTTP interface; and the cards that go along."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from lorakeet.adapters.model_card import Card, adapter_card, model_card
from lorakeet.adapters.run_card import run_card
from lorakeet.config import dump_yaml, resolve_config
from lorakeet.data.templates.template import template_for
from lorakeet.data.tokenizer import load_tokenizer
from lorakeet.errors import ExportError
from lorakeet.exports.artefact import Source
from lorakeet.exports.hub import describe, push
from lorakeet.exports.probes import choose_probes
from lorakeet.lora.adapter import save_adapter
from lorakeet.models import weights
from tests.exports.hub_stand_in import TOKEN, Repository, hub_stand_in

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # The hub's client and its transport are not quite of one mind.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("lorakeet.exports.export.choose_probes", partial(choose_probes, count=3))
    monkeypatch.setattr("lorakeet.exports.gate.LONG", 6)
    with hub_stand_in() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        yield running


@pytest.fixture
def source(base, adapter, tmp_path):
    directory = base()
    saved, _ = adapter(directory)
    (tmp_path / "run").mkdir()
    saved.rename(tmp_path / "run" / "adapter")
    tokenizer = load_tokenizer(directory)
    return Source(directory, tmp_path / "run" / "adapter", tokenizer, template_for(tokenizer), None, "org/tiny", "mine")


CARD = Card(base="org/tiny", license="mit", datasets=("org/rows",), figures={"steps": "3"})


def test_an_adapter_arrives_whole_with_its_card(hub, source):
    pushed = push(source, CARD, "me/mine", private=True)
    assert pushed.url == f"{hub.url}/me/mine"
    repository = hub.repositories["me/mine"]
    assert repository.private
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md", "lorakeet.json"} <= set(
        repository.files
    )
    original = (source.adapter / "adapter_model.safetensors").read_bytes()
    assert repository.files["adapter_model.safetensors"] == original
    assert json.loads(repository.files["adapter_config.json"])["base_model_name_or_path"] == "org/tiny"
    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.to_dict() == {
        "base_model": "org/tiny",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "datasets": ["org/rows"],
        "tags": ["base_model:adapter:org/tiny", "lora", "lorakeet", "transformers"],
    }
    assert "prompt ids equal for 3 of 3 conversations" in card.text
    assert "me/mine" in card.text
    assert not any(str(source.base) in content.decode(errors="replace") for content in repository.files.values())
    assert [file.name for file in source.adapter.parent.iterdir()] == ["adapter"]
    assert TOKEN not in "\n".join(describe(pushed))


def test_a_merged_model_arrives(hub, source):
    push(source, CARD, "me/whole", merged=True)
    files = hub.repositories["me/whole"].files
    assert {"config.json", "model.safetensors", "generation_config.json", "README.md"} <= set(files)
    assert ModelCard(files["README.md"].decode()).data.library_name == "transformers"


def test_a_dry_run_writes_the_folder_and_asks_nobody(hub, source, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    pushed = push(source, CARD, "me/mine", dry_run=tmp_path / "folder")
    assert hub.requests == []
    assert set(pushed.files) == {file.name for file in (tmp_path / "folder").iterdir()}
    assert "not pushed" in describe(pushed)[0]


def test_what_is_there_is_left_alone(hub, source):
    hub.repositories["me/mine"] = Repository(files={"model.safetensors": b"theirs", ".gitattributes": b""})
    with pytest.raises(ExportError, match=r"E-EXP-233 hub:me/mine holds 1 files already, such as model.safetensors"):
        push(source, CARD, "me/mine")
    with pytest.raises(ExportError, match="E-EXP-234 hub:me/mine is public"):
        push(source, CARD, "me/mine", private=True, update=True)
    assert not any("commit" in request or "create" in request for request in hub.requests)
    push(source, CARD, "me/mine", update=True)
    assert hub.repositories["me/mine"].files["model.safetensors"] == b"theirs"


def test_refusals_are_one_line(hub, source, monkeypatch, tmp_path):
    with pytest.raises(ExportError, match='E-EXP-230 push "mine"'):
        push(source, CARD, "mine")
    local = Source(source.base, source.adapter, source.tokenizer, source.template, None, "/home/me/phi", "mine")
    with pytest.raises(ExportError, match=r"E-EXP-237 .*--base-model"):
        push(local, CARD, "me/mine")
    hub.refuses_commits = True
    with pytest.raises(ExportError, match=r"E-EXP-232 hub:me/mine .*required permissions"):
        push(source, CARD, "me/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ExportError, match=r"E-EXP-232 .*Invalid credentials"):
        push(source, CARD, "me/mine")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ExportError, match=r"E-EXP-232 .*cannot be reached"):
        push(source, CARD, "me/mine")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(ExportError, match=r"E-EXP-231 .*hf auth login"):
        push(source, CARD, "me/mine")
    assert [file.name for file in source.adapter.parent.iterdir()] == ["adapter"]


def test_the_command_and_its_cards_snippet_run_against_hf_endpoint(source, tmp_path):
    """In a process of its own, as users have it; then the card's code loads what was pushed, from the same endpoint."""
    run, base = source.adapter.parent, tmp_path / "base"
    config = resolve_config(
        model=str(base), sections={"data": {"train": [str(tmp_path / "train.jsonl")], "eval": [str(tmp_path / "rows.jsonl")]}}
    )

    (run / "config.yaml").write_text(dump_yaml(config))
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    row["messages"][0]["content"] = "Hi again"
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 3, "loss": 1.5}) + "\n")
    with hub_stand_in() as hub:
        hub.repositories["org/tiny"] = Repository(files={file.name: file.read_bytes() for file in base.iterdir()})
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": os.pathsep.join(map(str, filter(None, sys.path)))}
        command = [sys.executable, "-m", "lorakeet", "push", str(run), "me/mine", "--base-model", "org/tiny", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["url"] == f"{hub.url}/me/mine"
        card = hub.repositories["me/mine"].files["README.md"].decode()
        (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "| steps | 3 |" in card
    assert "| training loss (last step) | 1.5000 |" in card


def test_a_card_of_a_run_names_data_but_no_place(tmp_path):
    rows = tmp_path / "private" / "rows.jsonl"
    sections = {"data": {"train": [str(rows), "org/rows:train"], "system": "Be kind."}}
    config = resolve_config(model="phi3-mini", sections=sections)
    losses = [{"step": 0, "eval_loss": 2.0}, {"step": 9, "loss": 1.0}, {"step": 9, "eval_loss": 1.25}]
    text = adapter_card(run_card(config, losses, base_name="microsoft/Phi-3-mini-4k-instruct"))
    assert str(tmp_path) not in text
    assert "- rows.jsonl" in text
    data = ModelCard(text).data
    assert (data.license, data.datasets, data.base_model) == ("mit", ["org/rows"], "microsoft/Phi-3-mini-4k-instruct")
    assert "| held-out loss before | 2.0000 |" in text
    assert "| held-out loss after | 1.2500 |" in text
    assert "Be kind." in text


@pytest.mark.parametrize("write", [adapter_card, model_card])
def test_a_base_that_is_no_hub_id_is_not_named_as_one(write):
    card = ModelCard(write(Card(base="/home/me/models/phi")))
    assert card.data.base_model is None
    assert "base_model:adapter" not in str(card.data.tags)
    assert "/home/me" not in str(card)


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_the_card_has_pefts_own_keys(base, adapter, tmp_path, monkeypatch):
    """Compared with the card that PEFT itself writes beside the same adapter."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import peft
    import transformers

    directory = base()
    saved, live = adapter(directory)
    save_adapter(live, saved, base_model_name_or_path="org/tiny", extra={"base_hash": weights.fingerprint(directory)})
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    peft.PeftModel.from_pretrained(model, saved).save_pretrained(tmp_path / "theirs")
    theirs = ModelCard.load(Path(tmp_path / "theirs" / "README.md")).data.to_dict()
    ours = ModelCard(adapter_card(Card(base="org/tiny"))).data.to_dict()
    assert theirs.keys() == ours.keys()
    assert (ours["library_name"], ours["pipeline_tag"]) == (theirs["library_name"], theirs["pipeline_tag"])
    assert {tag for tag in theirs["tags"] if "base_model" not in tag} <= set(ours["tags"])
