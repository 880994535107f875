"""Keeps the C library from giving large arrays back to the system between batches.

glibc maps an array of more than some megabytes anew each time that it is wanted, and the kernel clears every page of
it: thousands of page faults an image, a tenth of a ResNet-50's time on a processor. A thread other than the first has
it worse, for its own heap holds 64 MiB at most.
"""

from __future__ import annotations

import ctypes

# Source: glibc's malloc.h and mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let all threads share one heap that grows and is never given back; returns whether the C library took it."""
    try:
        option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER))
    taken = [option(name, value) == 1 for name, value in settings]
    return all(taken)
