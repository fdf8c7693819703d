"""Compile where a compiler is at hand, run the same Python where it is not, and say so once.

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

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)


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


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` for shapes of any size, on its first call and only where that is possible."""

    @functools.cache
    def fast() -> Callable[P, R]:
        return torch.compile(function, dynamic=True) if can_compile() else function

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return fast()(*args, **kwargs)

    return call
