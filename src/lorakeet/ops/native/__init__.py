"""C++ kernels for the few places where neither a library nor torch.compile comes near the machine's limit.

name of a source file in this folder → out: the loaded library, or None where it cannot be had. A library is compiled
at its first use on a machine, in a second or two, with the compiler that torch.compile needs anyway, and kept.
Every kernel has a plain PyTorch path beside it that takes over where there is no compiler or the CPU lacks what the
kernel needs. Sources use no PyTorch headers: tensors arrive as pointers and sizes.
"""

import ctypes
import functools
import hashlib
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

from lorakeet.cache import cache_dir
from lorakeet.files.durable import write_file
from lorakeet.ops.compiling import can_compile, cxx
from lorakeet.ops.hardware import cpu_info

logger = logging.getLogger(__name__)

# PyTorch's own OpenMP runtime is in the process already; -fopenmp makes the kernels share its threads.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC")


@functools.cache
def load_kernel(name: str) -> ctypes.CDLL | None:
    """Load the library of `name`.cpp; None where it cannot be built here or says it does not support this CPU."""
    if not sys.platform.startswith("linux") or not can_compile():
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    try:
        loaded = ctypes.CDLL(str(_build(source)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        logger.warning("The fast %s kernel could not be built, a slower path takes over: %s", name, str(reason)[-500:])
        return None
    return loaded if loaded.lorakeet_is_supported() else None


def _build(source: Path) -> Path:
    """Compile `source`, unless that was done before with the same compiler for the same CPU."""
    compiler = cxx()
    assert compiler is not None
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    # What -march=native makes for one CPU may not run on another that shares the cache.
    cpu = [*cpu_info("model name"), *cpu_info("flags")]
    state = "\0".join([source.read_text(encoding="utf-8"), version, *cpu, *FLAGS])
    target = cache_dir() / "native" / f"{source.stem}-{hashlib.sha256(state.encode()).hexdigest()[:16]}.so"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / target.name
        subprocess.run([compiler, *FLAGS, str(source), "-o", str(built)], capture_output=True, text=True, check=True)
        write_file(target, built.read_bytes())  # several processes may build at once, and none may load a part
    return target
