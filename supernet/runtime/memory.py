"""What a run holds of memory, and keeping what is freed: where the C library is glibc, big tensors otherwise cost
thousands of page faults each time."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from pathlib import Path

import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next tensor. Returns whether it was told so.

    glibc takes blocks over 32 MB, as feature maps are, from the system one by one and gives them back when they are
    freed, so each new tensor is filled in by page faults, 5 to 8 microseconds per 4 kB on a virtual machine. What it
    costs: memory stays with the process, at its peak so far, until the process ends, and that peak may be somewhat
    higher, since blocks of different sizes leave gaps. Elsewhere than with glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def memory_in_use(device: torch.device) -> int:
    """Bytes: on a GPU the most that tensors have taken so far; else what this process has of the machine's memory now,
    or, where the system does not say, at most had."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
