"""Allocator settings for loops that free and allocate the same memory at every step."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc takes no more


def keep_freed_memory() -> None:
    """Make glibc keep freed memory until the process ends; does nothing on other systems.

    A step's weight gradient has some 15 MB. If it is returned to the system after each step, its pages are mapped and
    zeroed again at the next one, which costs a quarter of an epoch of Stage 2 on a CPU (scripts/bench/stage2_epoch.py),
    and a tenth of an encoder's time (scripts/bench/encode.py).
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
