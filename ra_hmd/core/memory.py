"""Memory that is freed and asked for again at every step stays with the process."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc takes no more


def keep_freed_memory() -> None:
    """Tell glibc not to give freed memory back to the system before the process ends; elsewhere do nothing.

    A step's weight gradient has some 15 MB. Handed back after each step, its pages are mapped and zeroed again at the
    next one, which costs a quarter of an epoch of Stage 2 on a CPU (scripts/bench/stage2_epoch.py), and a tenth of what
    an encoder takes (scripts/bench/encode.py).
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
