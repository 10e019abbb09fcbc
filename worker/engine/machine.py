"""What a process asks of the machine before it trains or serves: memory that stays, threads that wait well.

Called by whoever starts a process that computes (the trainer, the inference process, a bench), and by those
that must know which machine it is; never by the engine itself, since it speaks for the whole process.
"""

import ctypes
import os
import socket
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, from malloc.h
_MOST_MMAP = 32 << 20  # glibc takes no more
_LARGE = 2**31 - 1

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def identity() -> str:
    """Return what tells this machine from others, the same in all its containers: the host name off Linux."""
    try:
        return _BOOT.read_text().strip()
    except OSError:  # no Linux
        return socket.gethostname()


def wait_briefly() -> None:
    """Let torch's threads spin a few microseconds for each other, then sleep; call it before torch loads.

    Spinning without end costs a busy two-core machine a factor of ten; sleeping at once costs an idle one a
    fifth of its decoding (`docs/decisions/brief-waiting.md`). What the operator has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


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
