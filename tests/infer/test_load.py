"""One base and the adapters of runs over it, from what a person names."""

import pytest
import torch

import lorakeet as lora
from lorakeet import api, chat_model
from lorakeet.errors import AdapterError, ServerError
from lorakeet.infer.load import load_one_base
from lorakeet.lora.inject import lora_layers
from lorakeet.rundir.record import write_config
from lorakeet.serve.served import Served
from tests.cli.conftest import write_tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("base") / "base-model")


@pytest.fixture(scope="module")
def loaded(base):
    return chat_model.load(str(base), bf16=False)


@pytest.fixture
def save_run(tmp_path, base, loaded):
    """Write what a finished run leaves; returns its directory."""

    def save(name, *, system=None, model=base, template="phi3-mini", bits=None, seed=1, modules_to_save=None):
        directory = tmp_path / name
        directory.mkdir(parents=True)
        quantised = {} if bits is None else {f"load_in_{bits}bit": True}
        config = api.run_config(str(model), "rows.jsonl", {"bf16": False}, None, {"template": template}, quantised)
        write_config(directory, config, system)
        model = lora.inject(chat_model.load(str(base), bf16=False).model, lora.LoraConfig(r=2, modules_to_save=modules_to_save))
        with torch.no_grad():
            for _, layer in lora_layers(model):
                layer.lora_B.normal_(generator=torch.Generator().manual_seed(seed))
        lora.save_adapter(model, directory / "adapter")
        return directory

    return save


def test_runs_and_their_model_are_one_base(base, save_run):
    first, second = save_run("runs/first", system="be quick"), save_run("runs/second", seed=2)
    found = load_one_base([str(first), str(second), str(base)])
    assert (found.name, list(found.adapters)) == (str(base), ["first", "second"])
    assert [one.system for one in found.adapters.values()] == ["be quick", None]
    assert found.adapters["first"].root == str(first / "adapter")
    assert found.adapters["first"].adapter.key != found.adapters["second"].adapter.key
    assert not list(lora_layers(found.chat_model.model))
    cards = Served.of(found).cards()
    assert [(card["id"], card["parent"]) for card in cards[1:]] == [("first", str(base)), ("second", str(base))]


def test_a_model_alone_has_no_adapters(base):
    found = load_one_base([str(base)])
    assert (found.name, found.adapters) == (str(base), {})


def test_the_newest_finished_run_is_the_default(save_run, tmp_path, monkeypatch):
    save_run("runs/first")
    monkeypatch.chdir(tmp_path)
    assert list(load_one_base().adapters) == ["first"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": "demo"}, "base model: .*, demo"),
        ({"bits": 4}, "quantisation"),
        ({"template": "chatml"}, "template: chatml, phi"),
    ],
)
def test_runs_that_cannot_share_a_base_are_refused(save_run, changes, what):
    with pytest.raises(ServerError, match=f"E-SRV-286 .*{what}"):
        load_one_base([str(save_run("runs/first")), str(save_run("runs/second", **changes))])


def test_two_runs_of_one_name_are_refused(save_run):
    with pytest.raises(ServerError, match='E-SRV-284 "same" would name two models'):
        load_one_base([str(save_run("a/same")), str(save_run("b/same"))])


def test_unfinished_runs_and_adapters_that_change_the_base_are_refused(save_run):
    whole = save_run("runs/whole", modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match="E-ADPT-270"):
        load_one_base([str(whole)])
    (whole / "adapter").rename(whole / "elsewhere")
    with pytest.raises(AdapterError, match="E-ADPT-105"):
        load_one_base([str(whole)])
