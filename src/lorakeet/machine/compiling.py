"""Compile if a compiler is at hand, run the same Python if it is not, and say so once.

torch.compile needs a C++ compiler for CPU code and Triton for CUDA code. Without them every function here still
gives the same numbers, a little slower.
"""

import contextlib
import functools
import getpass
import logging
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

MOST_GRAPHS = 256
"""Graphs that one function may have. Beyond 8 PyTorch would go on without compiling: with another rounding, and other
dropout masks from the same seed. A process that trains several models gets there."""

_SECONDS_TO_LINK = 5


@functools.cache
def can_compile() -> bool:
    """Tell whether torch.compile will work here; the reason is logged once if it will not."""
    if os.environ.get("LORAKEET_COMPILE") == "0":
        return False
    if cxx() is not None:
        _remove_cut_libraries()
        return True
    logger.warning("No C++ compiler found: training works, a little slower. Install g++ (or set CXX) for full speed.")
    return False


def _remove_cut_libraries() -> None:
    """Delete compiled code that is not whole from PyTorch's cache: Ctrl-C ends the linker in the middle of a file.

    PyTorch takes whatever is there, so every later run would end with "file too short". A file that was written a moment
    ago is left alone: another process may be at it.
    """
    for path in _compiled_code().rglob("*.so"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _SECONDS_TO_LINK and _is_cut(path):
                path.unlink()
                logger.debug("%s was not whole, so it is compiled anew.", path)


def _compiled_code() -> Path:
    """Return PyTorch's cache of compiled code; its own function takes seconds to import."""
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        return Path(named or Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}")
    except (KeyError, OSError):  # a user without a name, as in some containers
        return Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"


def _is_cut(library: Path) -> bool:
    """Tell whether a file is empty, or an ELF library that ends before its table of sections does."""
    with library.open("rb") as file:
        head = file.read(64)
    if len(head) < 64:
        return True
    is_elf = head[:6] == b"\x7fELF\x02\x01"  # of 64 bits, little-endian
    (start,) = struct.unpack_from("<Q", head, 0x28)
    size, count = struct.unpack_from("<HH", head, 0x3A)
    return is_elf and library.stat().st_size < start + size * count


def cxx() -> str | None:
    """Find the C++ compiler, $CXX before all others."""
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def compile_module(module: nn.Module) -> None:
    """Compile a module in place, for shapes of any size."""
    _allow_many_graphs()
    module.compile(dynamic=True)


def uncompile_module(module: nn.Module) -> None:
    """Let a module run as plain Python again."""
    module._compiled_call_impl = None


def _allow_many_graphs() -> None:
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_GRAPHS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, MOST_GRAPHS)


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` for shapes of any size, on its first call and only if that is possible."""

    @functools.cache
    def fast() -> Callable[P, R]:
        if not can_compile():
            return function
        _allow_many_graphs()
        return torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return fast()(*args, **kwargs)

    return call
