"""What doctor says is true of this machine, and what it advises fits what was found."""

import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import lorakeet
from lorakeet.cli import main
from lorakeet.doctor import environment, packages, speed
from lorakeet.doctor.finding import Finding, advice, to_dict

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_json_holds_what_this_machine_has(capsys):
    assert main.run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["environment"]["lorakeet"] == lorakeet.__version__
    assert found["environment"]["torch"] == torch.__version__
    assert found["devices"]["threads"] == torch.get_num_threads()
    assert found["room"]["runs_disk_bytes"] > 0
    speeds = {name: found["precision"][f"{name}_gflops"] for name in ("float32", "bfloat16")}
    assert all(value > 0 for value in speeds.values())
    assert found["precision"]["chosen"] in speeds
    assert found["packages"]["required"] == []
    assert all({"state", "about", "fix"} == set(step) for step in found["advice"])


def test_text_names_each_group_and_ends_in_what_to_do(capsys):
    assert main.run(["doctor"]) == 0
    out = capsys.readouterr().out
    for title in ("Environment", "Devices", "Room", "Precision", "Compilers", "Packages", "Extras"):
        assert f"\n{title}\n" in f"\n{out}"
    assert "hat to do" in out or "Nothing to do." in out


def test_version_comes_from_one_place(capsys, project):
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"lorakeet {lorakeet.__version__}\n"
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    assert f"## {lorakeet.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_extra_for_users_has_its_purpose(project):
    assert set(packages.EXTRAS) == set(project["optional-dependencies"]) - {"dev", "docs", "notebooks"}


def test_advice_puts_problems_first():
    note, problem = Finding("a", "b", 1, "x", "note", "Mend it"), Finding("a", "c", 2, "y", "problem", "Mend this")
    assert advice([note, Finding("a", "d", 3, "z"), problem]) == [problem, note]
    assert to_dict([note])["a"] == {"b": 1}


def test_a_missing_and_an_old_package_are_named(monkeypatch):
    wanted = {"": [Requirement("torch>=99"), Requirement("no-such-package-here"), Requirement("pytest")], "eval": []}
    monkeypatch.setattr(packages, "requirements", lambda: wanted)
    (found,) = packages.required()
    assert found.state == "problem"
    assert found.value == [f"torch is {torch.__version__}, wanted >=99", "no-such-package-here is missing"]


def test_a_source_folder_that_is_not_installed_is_said(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    (found,) = packages.required()
    assert found.fix.endswith("pip install -e .")


@pytest.mark.parametrize(("version", "expected"), [("0.34.1", "refuses every ADAPTER line"), ("0.13.1", "are refused")])
def test_a_program_of_a_known_bad_version_is_named(tmp_path, monkeypatch, version, expected):
    program = tmp_path / "ollama"
    program.write_text(f"#!/bin/sh\necho 'ollama version is {version}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (found,) = [one for one in packages.consumers() if one.name == "ollama"]
    assert found.value == version
    assert expected in found.text


def test_no_compiler_is_pointed_out(monkeypatch):
    monkeypatch.setattr(speed, "cxx", lambda: None)
    (found,) = speed.compilers()
    assert (found.state, found.fix) == ("note", speed.INSTALL_COMPILER)


def test_little_room_is_pointed_out(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "free_bytes", lambda: 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    states = [one.state for one in environment.room()]
    assert states == ["note"] * 4


def test_one_thread_on_many_cores_is_pointed_out(monkeypatch):
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 64)
    (found,) = [one for one in environment.devices() if one.name == "threads"]
    assert "unset OMP_NUM_THREADS" in found.fix
