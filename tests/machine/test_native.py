"""Kernels are built once, shared by processes, and never missed where they cannot be had."""

import ctypes

import pytest

from lorakeet.machine import native_code as native
from lorakeet.machine.compiling import can_compile, cxx

SOURCE = """
extern "C" int lorakeet_is_supported() { return %s; }
extern "C" int answer() { return 42; }
"""


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    if not can_compile() or cxx() is None:
        pytest.skip("needs a C++ compiler")
    monkeypatch.setenv("LORAKEET_CACHE", str(tmp_path / "cache"))
    native.load_kernel.cache_clear()
    yield
    native.load_kernel.cache_clear()


def built(tmp_path):
    return sorted((tmp_path / "cache" / "native").iterdir())


def test_a_kernel_is_built_once_and_again_when_its_source_changes(tmp_path):
    source = tmp_path / "kernel.cpp"
    source.write_text(SOURCE % 1)
    assert native.load_kernel(tmp_path / "kernel.cpp").answer() == 42
    (first,) = built(tmp_path)
    made = first.stat().st_mtime_ns
    native.load_kernel.cache_clear()
    assert isinstance(native.load_kernel(tmp_path / "kernel.cpp"), ctypes.CDLL)
    assert first.stat().st_mtime_ns == made
    source.write_text(SOURCE.replace("42", "43") % 1)
    native.load_kernel.cache_clear()
    assert native.load_kernel(tmp_path / "kernel.cpp").answer() == 43
    assert len(built(tmp_path)) == 2


def test_a_cpu_that_the_kernel_does_not_support_gets_none(tmp_path):
    (tmp_path / "kernel.cpp").write_text(SOURCE % 0)
    assert native.load_kernel(tmp_path / "kernel.cpp") is None


def test_a_failed_build_is_said_once_and_leaves_nothing(tmp_path, caplog):
    (tmp_path / "kernel.cpp").write_text("this is not C++")
    assert native.load_kernel(tmp_path / "kernel.cpp") is None
    assert native.load_kernel(tmp_path / "kernel.cpp") is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "slower path takes over" in caplog.text
    assert built(tmp_path) == []


def test_no_compiler_no_kernel(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "can_compile", lambda: False)
    assert native.load_kernel(tmp_path / "kernel.cpp") is None
