"""Compile if a compiler is at hand, run the same Python if it is not, and say so once.

torch.compile needs a C++ compiler for CPU code and Triton for CUDA code. Without them every function here still
gives the same numbers, a little slower.
"""

import functools
import logging
import os
import shutil
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

MOST_GRAPHS = 256
"""Graphs that one function may have. Beyond 8 PyTorch would go on without compiling: with another rounding, and other
dropout masks from the same seed. A process that trains several models gets there."""


@functools.cache
def can_compile() -> bool:
    """Tell whether torch.compile will work here; the reason is logged once where it will not."""
    if os.environ.get("LORAKEET_COMPILE") == "0":
        return False
    if cxx() is not None:
        return True
    logger.warning("No C++ compiler found: training works, a little slower. Install g++ (or set CXX) for full speed.")
    return False


def cxx() -> str | None:
    """Find the C++ compiler, $CXX before all others."""
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def compile_module(module: nn.Module) -> None:
    """Compile a module in place, for shapes of any size."""
    _allow_many_graphs()
    module.compile(dynamic=True)


def _allow_many_graphs() -> None:
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_GRAPHS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, MOST_GRAPHS)


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` for shapes of any size, on its first call and only where that is possible."""

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
