"""Landlock: which files this process and its children may see, from now on and for good.

Runs inside the sandbox, in the zygote, before it imports what a grader asks for. Everything a kernel can
govern is forbidden; reading the listed paths and writing the scratch folder is given back.

Source: landlock(7), ABI 1 to 7.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Sequence

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIR, _WRITE_FILE, _TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 14
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_READ = _READ_FILE | _READ_DIR
_SCRATCH = _READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG
# The rights a rule about a file may name; a directory's in such a rule are an error.
_OF_FILES = _READ_FILE | _WRITE_FILE | _TRUNCATE

# The kernel's file rights by ABI: 13 at first, then REFER, TRUNCATE and IOCTL_DEV.
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP_BIND_AND_CONNECT = 0b11
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


def abi() -> int:
    """Return the version of Landlock this kernel has on, 0 for none."""
    version = 1
    return max(0, _call(_CREATE, None, 0, version))


def restrict(*, read: Sequence[str], write: Sequence[str], scratch: str | None) -> None:
    """Shut this thread and its children in: `read` to be read, `write` single files, `scratch` a folder.

    Paths that are not there are left out. The caller has set no_new_privs. Raises: OSError.
    """
    version = abi()
    if version < 1:
        raise OSError("Landlock is not available in this kernel")
    rights = _RIGHTS[min(version, 5)]
    attributes = struct.pack("Q", rights)
    if version >= 4:
        attributes += struct.pack("Q", _TCP_BIND_AND_CONNECT)
    if version >= 6:
        attributes += struct.pack("Q", _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS)
    ruleset = _checked(_call(_CREATE, attributes, len(attributes), 0))
    try:
        for path in read:
            _allow(ruleset, path, _READ & rights)
        for path in write:
            _allow(ruleset, path, _OF_FILES & rights)
        if scratch is not None:
            _allow(ruleset, scratch, _SCRATCH & rights)
        _checked(_call(_RESTRICT, ruleset, 0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        beneath = 1
        _checked(_call(_ADD_RULE, ruleset, beneath, struct.pack("=Qi", rights, place), 0))
    finally:
        os.close(place)


def _call(number: int, *arguments: int | bytes | None) -> int:
    typed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *typed))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return result
