"""`lorakeet export`: what it prints, and what it says against bad requests."""

import json
import resource
import shutil
import sys

import pytest

from lorakeet.cli import main
from lorakeet.config import dump_yaml, resolve_config


@pytest.fixture
def run_directory(tmp_path, source):
    parts = source()
    directory = tmp_path / "run"
    directory.mkdir()
    shutil.copytree(parts.adapter, directory / "adapter")
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(30)))
    config = resolve_config(model=str(parts.base), sections={"data": {"train": [str(tmp_path / "rows.jsonl")]}})
    (directory / "config.yaml").write_text(dump_yaml(config))
    return directory


def test_an_export_ends_with_one_json_object(tmp_path, run_directory, capsys):
    pytest.importorskip("xllamacpp")
    output = tmp_path / "mine.gguf"
    command = ["export", str(run_directory), "--format", "gguf", "-o", str(output), "--dtype", "f32", "--json"]
    assert main.run(command) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["format"], said["dtype"], said["path"]) == ("gguf", "f32", str(output))
    assert said["parity"]["num_equal_ids"] == said["parity"]["num_probes"]
    assert said["commands"] == [f"llama-server -m {output} -c 1024 --jinja"]
    assert main.run(command) == 2
    assert "E-CFG-48" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--format", "ggfu", "-o", "out"], "E-EXP-201"),
        (["--format", "gguf", "-o", "out", "--dtype", "q3_k"], "E-EXP-202"),
        (["--format", "hf", "-o", "out.gguf"], "E-EXP-203"),
    ],
)
def test_bad_requests_are_one_line(tmp_path, run_directory, monkeypatch, capsys, arguments, code):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main.run(["export", str(run_directory), *arguments]) == 2
    error = capsys.readouterr().err
    assert code in error
    assert len(error.strip().splitlines()) == 1
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts] == [
        path for path in before if "cache" not in path.parts
    ]


def test_merge_is_export_to_hf_by_another_name_even_if_the_data_is_gone(tmp_path, run_directory, monkeypatch, capsys):
    monkeypatch.setattr("lorakeet.exports.gate.MOST_WORK", 0)
    (tmp_path / "rows.jsonl").unlink()
    said = []
    for command in (["merge"], ["export", "--format", "hf"]):
        assert main.run([*command, str(run_directory), "-o", str(tmp_path / command[0])]) == 0
        said.append(capsys.readouterr().out.replace(str(tmp_path / command[0]), "OUT"))
    merged, exported = ([line for line in text.splitlines() if "Parity" not in line] for text in said)
    assert merged == exported
    assert len([line for line in merged if "only built-in ones: E-DATA-1" in line]) == 1
    for file in (tmp_path / "merge").iterdir():
        if file.name != "lorakeet.json":
            assert file.read_bytes() == (tmp_path / "export" / file.name).read_bytes()


@pytest.mark.parametrize("form", ["hf", "gguf", "ollama", "peft"])
def test_a_disk_that_takes_no_more_is_one_line_and_nothing_is_left(tmp_path, run_directory, capsys, form):
    main.run(["inspect", str(run_directory)])  # fills the cache of hashes
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # as a full disk, in the middle of the first large file
    try:
        status = main.run(["export", str(run_directory), "--format", form, "-o", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    assert (status, error.count("E-CFG-46"), len(error.strip().splitlines())) == (2, 1, 1)
    assert not list(tmp_path.glob("*out*"))


def test_another_architecture_and_a_missing_package_are_one_line(tmp_path, run_directory, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main.run(["export", str(run_directory), "--format", "gguf", "-o", str(tmp_path / "out")]) == 2
    assert "lorakeet[gguf]" in capsys.readouterr().err
    file = tmp_path / "base" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}))
    assert main.run(["merge", str(run_directory), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("E-MODEL-72")
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*out*"))


def test_a_run_without_an_adapter_and_an_adapter_of_another_base_are_refused(tmp_path, run_directory, capsys):
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(run_directory / "config.yaml", half)
    assert main.run(["export", str(half), "--format", "gguf", "-o", str(tmp_path / "out")]) == 2
    assert "E-ADPT-105" in capsys.readouterr().err
    assert main.run(["export", str(tmp_path), "--format", "gguf", "-o", str(tmp_path / "out")]) == 2
    assert "E-CKPT-100" in capsys.readouterr().err
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert main.run(["export", str(run_directory), "--format", "gguf", "-o", str(tmp_path / "out")]) == 2
    assert "E-ADPT-64" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
