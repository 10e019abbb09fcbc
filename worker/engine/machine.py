"""What the process asks of the machine before it trains or serves: memory that stays once it was touched.

Called by whoever starts a process that computes (the trainer, the inference process, a bench); never by the
engine itself, since it speaks for the whole process.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, from malloc.h
_MOST_MMAP = 32 << 20  # glibc takes no more
_LARGE = 2**31 - 1


def keep_memory() -> None:
    """Let freed memory be used again instead of going back to the system (glibc only; else nothing).

    A step frees and asks for the same large tensors thousands of times, and each time the system would hand
    out new pages, emptied one by one.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _MOST_MMAP)
            mallopt(_TRIM_THRESHOLD, _LARGE)
