"""With a compiler or without: the same numbers, and one line about it."""

import logging

import pytest
import torch

from lorakeet.machine import compiling


def test_without_a_compiler_the_same_python_runs_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("LORAKEET_COMPILE", raising=False)
    compiling.can_compile.cache_clear()
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
        compiling.can_compile.cache_clear()


def test_a_function_of_many_variants_stays_compiled():
    if not compiling.can_compile():
        pytest.skip("needs a C++ compiler")

    @compiling.compiled
    def tell(x, variant):
        return x + (len(variant) if torch.compiler.is_compiling() else -1)

    for length in range(12):
        assert tell(torch.zeros(()), "x" * length) == length
