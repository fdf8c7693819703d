"""How much memory this process took at most, in all and while one thing was done.

data in: nothing → out: bytes: of the GPU where one is used, else of the process as a whole.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

_forgotten_peak = 0
"""The largest peak before counting last began anew."""


def peak_memory_bytes() -> int:
    """Return the largest memory so far."""
    return max(_forgotten_peak, _current_peak())


def peak_during(work: Callable[[], object]) -> int:
    """Do `work` and return the largest memory meanwhile; if the system does not report it, the largest so far."""
    global _forgotten_peak
    _forgotten_peak = peak_memory_bytes()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        _reset_high_water_mark()
    work()
    return _current_peak()


def _current_peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return _peak_working_set()
    import resource  # not on Windows

    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _peak_working_set() -> int:
    """Ask Windows for the process's largest working set. Source: PROCESS_MEMORY_COUNTERS in psapi.h."""
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            ("PeakWorkingSetSize", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 7),
        ]

    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    kernel.GetCurrentProcess.restype = wintypes.HANDLE
    counters = Counters(cb=ctypes.sizeof(Counters))
    arguments = wintypes.HANDLE(kernel.GetCurrentProcess()), ctypes.byref(counters), ctypes.sizeof(counters)
    return counters.PeakWorkingSetSize if kernel.K32GetProcessMemoryInfo(*arguments) else 0


def _reset_high_water_mark() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): reset the peak resident set size
    except OSError:  # another system, or a container that forbids it: peaks then only grow
        return
