"""With a compiler or without: the same numbers, and one line about it."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from lorakeet.machine import compiling
from tests.compiler import forget_compiler


def test_without_a_compiler_the_same_python_runs_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("LORAKEET_COMPILE", raising=False)
    forget_compiler()
    try:
        calls = []

        @compiling.compiled
        def double(x):
            calls.append(x)  # a side effect that compiled code would not repeat
            return x + x

        with caplog.at_level(logging.WARNING):
            for value in (1.0, 2.0):
                assert torch.equal(double(torch.tensor(value)), torch.tensor(2 * value))
        assert len(calls) == 2
        assert [record.message for record in caplog.records] == [
            "No C++ compiler found: training works, a little slower. Install g++ (or set CXX) for full speed."
        ]
    finally:
        forget_compiler()


def test_a_function_of_many_variants_stays_compiled():
    if not compiling.can_compile():
        pytest.skip("needs a C++ compiler")

    @compiling.compiled
    def tell(x, variant):
        return x + (len(variant) if torch.compiler.is_compiling() else -1)

    for length in range(12):
        assert tell(torch.zeros(()), "x" * length) == length


def test_code_that_a_killed_linker_left_is_compiled_anew(tmp_path):
    """In processes of their own: one compiles, its library is cut, and the next one does not fail on it."""
    if not compiling.can_compile():
        pytest.skip("needs a C++ compiler")
    program = (
        "import torch\n"
        "from lorakeet.machine import compiling\n"
        "print(float(compiling.compiled(lambda x: (x + x).sin())(torch.ones(64)).sum()))\n"
    )
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    libraries = list(tmp_path.rglob("*.so"))
    assert libraries
    for keep, library in zip((0, 63, -1) * len(libraries), libraries, strict=False):
        data = library.read_bytes()
        library.write_bytes(data[:keep])
        os.utime(library, (0, 0))
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert second.stdout == first.stdout
    assert all(library.stat().st_size > 64 for library in libraries)


@pytest.mark.parametrize(("keep", "is_cut"), [(0, True), (63, True), (-1, True), (None, False)])
def test_a_cut_library_is_known(tmp_path, keep, is_cut):
    source, library = tmp_path / "a.cpp", tmp_path / "a.so"
    if compiling.cxx() is None:
        pytest.skip("needs a C++ compiler")
    source.write_text("int one() { return 1; }")
    subprocess.run([compiling.cxx(), "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    library.write_bytes(library.read_bytes()[:keep])
    assert compiling._is_cut(library) == is_cut
