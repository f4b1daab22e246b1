"""Keep freed memory: where the C library is glibc, big tensors otherwise cost thousands of page faults each time."""

from __future__ import annotations

import ctypes
import platform

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
