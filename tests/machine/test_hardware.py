"""What the machine is best at is measured once, and remembered for this machine, this torch and these threads."""

import json

import pytest
import torch

from lorakeet.errors import ConfigError
from lorakeet.machine import hardware
from lorakeet.machine.hardware import choose_dtype


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Count measurements, in a cache of the test's own."""
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path))
    calls = []
    right = hardware._gemm_seconds

    def counted(dtype):
        calls.append(dtype)
        return right(dtype)

    monkeypatch.setattr(hardware, "_gemm_seconds", counted)
    return calls


def test_the_fastest_dtype_is_measured_once(measured):
    first = choose_dtype(None, "cpu")
    assert first in (torch.bfloat16, torch.float32)
    assert measured == [torch.bfloat16, torch.float32]
    assert choose_dtype(None, "cpu") == first
    assert len(measured) == 2


@pytest.mark.parametrize("what", ["threads", "torch", "CPU"])
def test_another_machine_measures_anew(measured, monkeypatch, what):
    choose_dtype(None, "cpu")
    match what:
        case "threads":
            monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
        case "torch":
            monkeypatch.setattr(torch, "__version__", "99.0")
        case "CPU":
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    choose_dtype(None, "cpu")
    assert len(measured) == 4


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "other", "value": "float32"}', '{"key": 1}'])
def test_a_damaged_memory_is_measured_anew(measured, tmp_path, damage):
    choose_dtype(None, "cpu")
    (file,) = (tmp_path / "remembered").glob("*.json")
    file.write_text(damage)
    choose_dtype(None, "cpu")
    assert len(measured) == 4
    assert json.loads(file.read_text())["value"] in ("bfloat16", "float32")


def test_a_cache_that_cannot_be_written_costs_time_only(measured, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        choose_dtype(None, "cpu")
    assert len(measured) == 4


def test_the_configuration_wins(measured):
    assert choose_dtype(False, "cpu") == torch.float32
    assert measured == []
    assert choose_dtype(True, "cpu") == torch.bfloat16  # measured all the same, to warn where it is the slower


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert choose_dtype(None, "cuda") == torch.float32
    with pytest.raises(ConfigError, match="E-CFG-40"):
        choose_dtype(True, "cuda")


@pytest.mark.parametrize(
    ("seconds", "warns"),
    [({torch.bfloat16: 6.0, torch.float32: 1.0}, True), ({torch.bfloat16: 1.0, torch.float32: 4.5}, False)],
)
def test_a_slow_bf16_is_taken_where_asked_for_but_not_in_silence(tmp_path, monkeypatch, caplog, seconds, warns):
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path))
    monkeypatch.setattr(hardware, "_gemm_seconds", lambda dtype: seconds[dtype])
    assert choose_dtype(True, "cpu") == torch.bfloat16
    assert ("leave bf16 out" in caplog.text) == warns
    caplog.clear()
    assert choose_dtype(False, "cpu") == torch.float32
    assert choose_dtype(None, "cpu") == (torch.float32 if warns else torch.bfloat16)
    assert caplog.text == ""
