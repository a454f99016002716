"""The memory that a process has taken, and giving back what it no longer uses."""

import ctypes
import math
import resource
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

LARGE = 1 << 28  # bytes that are worth giving back
_MAPPED = 1 << 22  # bytes of a tensor from which on `map_large` maps it apart
_ON_TOP = 1 << 25  # bytes free at the end of the heap that may stay
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def resident() -> int:
    """Memory of this process right now, in bytes; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0


def peak_memory(device: Any = "cpu") -> int:
    """Largest memory so far, in bytes: resident on a CPU, allocated on a GPU; of torch's device, or one by its name."""
    if str(device).startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage begins at what the parent process had when it started this one
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line[:6] == "VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak(device: Any = "cpu") -> None:
    """Let `peak_memory` begin anew, where the system can: for a limit on what comes next, whatever was before."""
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM falls to what is resident now


def give_back(freed: float = math.inf) -> None:
    """Give the system the pages of freed memory that the C library keeps for itself, where it is glibc.

    It keeps pieces below 32 MiB that were freed between others in use: of a model that was loaded, traced and tried out
    hundreds of MiB, into which nothing large fits. A few milliseconds, and more where the pages are taken again at
    once, so that little that was freed is left alone.

    Args:
        freed: about how many bytes were; nothing is done below `LARGE`.
    """
    trim = of_glibc("malloc_trim") if freed >= LARGE else None
    if trim is not None:
        trim(0)


def map_large() -> None:
    """Have the C library map what takes 4 MiB or more apart from its heap, in this process from now on, if it is glibc.

    What is mapped goes back whole when it is freed. By default that ends as soon as something below 32 MiB was freed:
    tensors that come and go between small values that stay then leave holes in the heap, which no larger one fits into.
    The holes count under `ulimit -d` even after `give_back`. Of a model read layer by layer they come to the size of θ.
    """
    option = of_glibc("mallopt")
    if option is not None:
        option(_M_MMAP_THRESHOLD, _MAPPED)
        option(_M_TRIM_THRESHOLD, _ON_TOP)


@cache
def of_glibc(name: str) -> Any:
    """A function of the C library, or None."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return None
