"""Which precision is fast here and by how much; compilers, and the kernels they make."""

import importlib.util
import os
from collections.abc import Iterator

import torch

from lorakeet.doctor.finding import Finding
from lorakeet.machine import tensor_heap
from lorakeet.machine.compiling import can_compile, cxx
from lorakeet.machine.hardware import best_dtype, product_gflops
from lorakeet.machine.native_code import load_kernel
from lorakeet.ops.attention import native
from lorakeet.quant import four_bits

INSTALL_COMPILER = "Install a C++ compiler for full speed: apt install g++ (Debian), dnf install gcc-c++ (Fedora)"


def precision() -> Iterator[Finding]:
    """Time the matrix products of training in float32 and bfloat16, and say which of the two training will take."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    speeds = {name: product_gflops(getattr(torch, name), device) for name in ("float32", "bfloat16")}
    for name, speed in speeds.items():
        yield Finding("precision", f"{name}_gflops", round(speed, 1), f"{name}: {speed:,.0f} GFLOP/s")
    chosen = str(best_dtype(device)).removeprefix("torch.")
    other = next(name for name in speeds if name != chosen)
    ratio = speeds[chosen] / speeds[other]
    yield Finding("precision", "times_as_fast", round(ratio, 2), f"{chosen} is {ratio:.1f} times as fast as {other} here")
    fix = "" if ratio > 0.8 else "Another program is probably busy: what was measured when it was quiet is kept"
    text = f"training takes {chosen} unless bf16 says otherwise"
    yield Finding("precision", "chosen", chosen, text, "note" if fix else "ok", fix)


def compilers() -> Iterator[Finding]:
    """Yield the C++ compiler, Triton if there is a GPU, and which kernels could be built."""
    found = cxx()
    is_off = os.environ.get("LORAKEET_COMPILE") == "0"
    fix = "" if found else INSTALL_COMPILER
    if is_off:
        fix = "LORAKEET_COMPILE=0 turns compiling off: unset it for full speed"
    yield Finding("compilers", "cxx", found, f"C++ compiler: {found or 'none'}", "note" if fix else "ok", fix)
    if torch.cuda.is_available():
        has_triton = importlib.util.find_spec("triton") is not None
        fix = "" if has_triton else "torch.compile needs Triton on a GPU: pip install triton"
        text = "Triton is installed" if has_triton else "Triton is missing"
        yield Finding("compilers", "triton", has_triton, text, "note" if fix else "ok", fix)
    if found is None or not can_compile():
        return
    sources = {
        "attention in float32": native.KERNELS[torch.float32],
        "attention in bfloat16": native.KERNELS[torch.bfloat16],
        "four bits": four_bits.SOURCE,
        "heap of tensors": tensor_heap.SOURCE,
    }
    built = {name: load_kernel(source) is not None for name, source in sources.items()}
    names = ", ".join(name for name, is_built in built.items() if is_built)
    yield Finding("compilers", "kernels", built, f"fast kernels: {names or 'none; PyTorch products take their place'}")
