"""The C library's allocator, told to give large blocks back to the system as soon as they are free.

By itself glibc keeps blocks of up to 32 MiB once one of that size was freed, in an arena for each thread: a service
that had large results once would stay large.
"""

from __future__ import annotations

import ctypes

# https://man7.org/linux/man-pages/man3/mallopt.3.html
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
BLOCK_BYTES = 256 << 10
ARENAS = 2


def give_back() -> bool:
    """Have blocks above 256 KiB mapped one by one, and freed likewise; tell whether this C library can."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    asked = ((M_MMAP_THRESHOLD, BLOCK_BYTES), (M_TRIM_THRESHOLD, BLOCK_BYTES), (M_ARENA_MAX, ARENAS))
    return all(mallopt(name, value) for name, value in asked)
