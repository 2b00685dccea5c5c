"""Keep freed memory for the next batch, on the CPU.

glibc gives every large block back to the kernel as soon as it is freed, and the kernel zeroes its
pages again for the next forward pass. With convolutional towers on two cores nearly half of
the time went there (`benchmarks/allocator.py`); keeping the blocks costs no more memory than the
largest batch needs anyway. There is one heap for all threads: of several, each would keep its own.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_NEVER_TRIM = 2**31 - 1
_LARGEST_KEPT = 2**30  # bytes; a single larger block still goes back


def reuse_freed_memory() -> bool:
    """Ask the C library to keep freed blocks for this whole process.

    Returns:
        Whether it did: only glibc can, elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        and mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
        and mallopt(_M_ARENA_MAX, 1)
    )
