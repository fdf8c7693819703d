"""The heap for large tensors (tensor_heap.cpp), which keeps training's memory as small as its largest step."""

import ctypes
import functools
import os
from pathlib import Path

from lorakeet.machine.native_code import load_kernel

SOURCE = Path(__file__).with_name("tensor_heap.cpp")


def install() -> bool:
    """Send PyTorch's large CPU tensors to the heap from now on; return whether that is possible here."""
    return _installed() is not None


def extent() -> int:
    """Return the most bytes that tensors took of the heap so far, with the gaps between them; 0 if there is none."""
    library = _installed()
    return int(library.lorakeet_tensor_heap_extent()) if library is not None else 0


@functools.cache
def _installed() -> ctypes.CDLL | None:
    library = load_kernel(SOURCE)
    if library is None:
        return None
    library.lorakeet_install_tensor_heap.argtypes = [ctypes.c_size_t]
    library.lorakeet_tensor_heap_extent.restype = ctypes.c_size_t
    return library if library.lorakeet_install_tensor_heap(reserved_bytes()) else None


def reserved_bytes() -> int:
    """Return how many addresses to reserve: four times the machine's memory, enough for any gaps, and free of charge."""
    return 4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
