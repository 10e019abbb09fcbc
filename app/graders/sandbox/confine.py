"""What a process gives up before it touches anything of a user: identity, capabilities, files, limits.

Runs inside the sandbox. `enter` is for the zygote, once; `limit` for each child, which then puts the system
call filter around itself. Nothing here can be undone by the process that did it.
"""

import ctypes
import os
import resource
import struct
from collections.abc import Mapping
from typing import Any

from app.graders.sandbox import landlock
from app.graders.sandbox.syscalls import MACHINES

_SET_DUMPABLE, _SET_KEEPCAPS, _DROP_BOUND, _NO_NEW_PRIVS = 4, 8, 24, 38
_CAP_DAC_READ_SEARCH = 2
_MOST_CAPABILITIES = 64
_CAPABILITY_VERSION = 0x20080522

OPEN_FILES = 64


def enter(plan: Mapping[str, Any]) -> None:
    """Give up identity, capabilities and every file but those of the plan. Raises: OSError."""
    keep = 1 << _CAP_DAC_READ_SEARCH if plan["keep_read_search"] else 0
    if plan["uid"] is not None:
        for capability in range(_MOST_CAPABILITIES):
            _prctl(_DROP_BOUND, capability)
        if keep:
            _prctl(_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(plan["gid"], plan["gid"], plan["gid"])
        os.setresuid(plan["uid"], plan["uid"], plan["uid"])
    _keep_capabilities(keep)
    _prctl(_SET_DUMPABLE, 0)
    if _prctl(_NO_NEW_PRIVS, 1):
        raise OSError("no_new_privs was refused")
    landlock.restrict(read=plan["read"], write=plan["write"], scratch=plan["scratch"])
    os.chdir(plan["scratch"] or "/")
    os.umask(0o077)


def limit(plan: Mapping[str, Any]) -> None:
    """Set the limits of one call; the zygote's deadline comes on top."""
    for which, most in (
        (resource.RLIMIT_AS, plan["memory_bytes"]),
        (resource.RLIMIT_CPU, int(plan["seconds"] * 2) + 1),
        (resource.RLIMIT_FSIZE, plan["file_bytes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, plan["tasks"]),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(which, (most, most))


def _keep_capabilities(mask: int) -> None:
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    # Effective, permitted and inheritable, the low 32 bits, then the high ones.
    sets = struct.pack("6I", mask, mask, 0, 0, 0, 0)
    number = MACHINES[os.uname().machine].capset
    if ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), header, sets):
        raise OSError(ctypes.get_errno(), "capabilities could not be dropped")


def _prctl(option: int, value: int) -> int:
    return int(ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), 0, 0, 0))
