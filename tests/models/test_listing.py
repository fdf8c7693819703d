"""`lorakeet models`: sizes are those that are published, the table fits a terminal, what is downloaded is found."""

import json

import pytest

from lorakeet import api
from lorakeet.models.catalogue import MODELS

PUBLISHED = {  # billions of weights, as the models' cards have them
    "phi3-mini": 3.82,
    "phi4": 14.66,
    "phi4-mini": 3.84,
    "llama3.2-1b": 1.24,
    "llama3.2-3b": 3.21,
    "llama3.1-8b": 8.03,
    "qwen2.5-0.5b": 0.49,
    "qwen2.5-1.5b": 1.54,
    "qwen2.5-7b": 7.62,
    "qwen3-0.6b": 0.60,
    "qwen3-4b": 4.02,
    "gemma3-270m": 0.268,
    "gemma3-1b": 1.0,
    "mistral-7b": 7.25,
    "smollm2-1.7b": 1.71,
}


@pytest.mark.parametrize("alias", PUBLISHED)
def test_sizes_are_those_that_are_published(alias):
    assert MODELS[alias].shape.num_params / 1e9 == pytest.approx(PUBLISHED[alias], rel=0.01)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def download(cache, repo_id, files):
    folder = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


def test_what_is_downloaded_is_said_and_half_a_download_is_none(hub_cache):
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    whole = {"config.json": b"{}", "model.safetensors": bytes(1000)}
    half = {"config.json": b"{}", "model.safetensors.index.json": index, "model-1.safetensors": bytes(10)}
    download(hub_cache, "Qwen/Qwen3-0.6B", whole)
    download(hub_cache, "Qwen/Qwen2.5-7B-Instruct", half)
    found = {model.alias: model.cached_bytes for model in api.models().models}
    assert {alias: number for alias, number in found.items() if number} == {"qwen3-0.6b": 1000}


def test_table_fits_a_terminal_and_json_has_it_all(hub_cache):
    listing = api.models()
    lines = listing.lines()
    assert max(map(len, lines)) <= 80
    assert any("microsoft/Phi-3-medium-4k-instruct" in line for line in lines)
    assert [model["alias"] for model in listing.to_dict()["models"]] == sorted(MODELS, key=lambda a: MODELS[a].shape.num_params)
    for model in listing.models:
        assert 0 < model.qlora_bytes < model.lora_bytes
