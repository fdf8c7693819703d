"""C++ kernels for the few places where neither a library nor torch.compile comes near the machine's limit.

a source file → out: the loaded library, or None if it cannot be had. A library is compiled
at its first use on a machine, in a second or two, with the compiler that torch.compile needs anyway, and kept.
Every kernel has a plain PyTorch path beside it that takes over if there is no compiler or the CPU lacks what the
kernel needs. Kernels use no PyTorch headers, tensors arrive as pointers and sizes; only what replaces a part of
PyTorch's, the heap of tensors, includes that part's header and is built anew for every version.
"""

import ctypes
import functools
import hashlib
import logging
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from lorakeet.files.cache import cache_dir
from lorakeet.files.durable import write_file
from lorakeet.machine.compiling import can_compile, cxx
from lorakeet.machine.hardware import cpu_info

logger = logging.getLogger(__name__)

# PyTorch's own OpenMP runtime is in the process already; -fopenmp makes the kernels share its threads.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC")


@functools.cache
def load_kernel(source: Path) -> ctypes.CDLL | None:
    """Load the library of a C++ file; None if it cannot be built here or says it does not support this CPU."""
    if not sys.platform.startswith("linux") or not can_compile():
        return None
    try:
        loaded = ctypes.CDLL(str(_build(source)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        logger.warning("The fast %s kernel could not be built, a slower path takes over: %s", source.stem, str(reason)[-500:])
        return None
    return loaded if loaded.lorakeet_is_supported() else None


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """Return the address of a tensor's numbers as a kernel takes it; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _build(source: Path) -> Path:
    """Compile `source`, unless that was done before with the same compiler for the same CPU."""
    compiler = cxx()
    assert compiler is not None
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    # What -march=native makes for one CPU may not run on another that shares the cache.
    cpu = [*cpu_info("model name"), *cpu_info("flags")]
    text = source.read_text(encoding="utf-8")
    before, after = _pytorch_flags() if "#include <c10/" in text else ([], [])
    headers = [(source.parent / name).read_text(encoding="utf-8") for name in re.findall(r'#include "(.+)"', text)]
    state = "\0".join([text, *headers, version, *cpu, *FLAGS, *before, *after])
    target = cache_dir() / "native" / f"{source.stem}-{hashlib.sha256(state.encode()).hexdigest()[:16]}.so"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / target.name
        command = [compiler, *FLAGS, *before, str(source), *after, "-o", str(built)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        write_file(target, built.read_bytes())  # several processes may build at once, and none may load a part
    return target


def _pytorch_flags() -> tuple[list[str], list[str]]:
    """Return what a source with PyTorch's headers needs on the command line, before it and after it."""
    folder = Path(torch.__file__).parent
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    # The library is in the process already and is found by its name; the version makes the key of what is kept.
    return (
        [f"-I{folder / 'include'}", f"-D_GLIBCXX_USE_CXX11_ABI={abi}", f'-DBUILT_FOR="{torch.__version__}"'],
        [f"-L{folder / 'lib'}", "-lc10"],
    )
