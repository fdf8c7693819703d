"""Tests on a machine without a compiler, wherever they run: what was found out about the compiler is forgotten again."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lorakeet.machine import compiling, memory, native_code, tensor_heap


@contextmanager
def uncompiled() -> Iterator[pytest.MonkeyPatch]:
    """Let nothing be compiled meanwhile, in this process and in those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKEET_COMPILE", "0")
        forget_compiler()
        yield patch
    forget_compiler()


def forget_compiler() -> None:
    """Let the next question for a compiler, a kernel or the heap be asked anew: tests share their process with others."""
    for found in (compiling.can_compile, native_code.load_kernel, tensor_heap._installed, memory.keep_freed_memory):
        found.cache_clear()
