"""The filter between a grader and the kernel: a program for the kernel's packet-filter machine.

Runs inside the sandbox, in the child that will run the user's source. What may be called stands in
`syscalls`.

Source: seccomp(2); struct seccomp_data of linux/seccomp.h; struct sock_filter of linux/filter.h.
"""

import ctypes
import errno
import struct

from app.graders.sandbox.syscalls import Machine

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

# Where seccomp_data holds what we look at; arguments are 64 bits, both machines are little-endian.
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16

_CLONE_THREAD = 0x00010000
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: no thread needs one.
_CLONE_NAMESPACES = 0x7E020000
# F_SETOWN, F_SETSIG, F_SETLEASE and F_NOTIFY let a process send signals to others, so fcntl is an allow-list:
# F_DUPFD, GETFD, SETFD, GETFL, SETFL, GETLK, SETLK, SETLKW, the OFD locks, DUPFD_CLOEXEC.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)

Instruction = tuple[int, int, int, int]


def program(machine: Machine, *, forks: bool = False) -> list[Instruction]:
    """Return the filter as (code, jump if true, jump if false, operand); what is not named is EPERM.

    With `forks` it is the zygote's: it may also fork, kill, and put the child's filter around itself.
    """
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_IF_EQUAL, 1, 0, machine.audit_arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine.foreign_from is not None:
        lines += [(_IF_AT_LEAST, 0, 1, machine.foreign_from), (_RETURN, 0, 0, _KILL)]
    for number in sorted(machine.allowed.values()):
        lines += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number in (machine.kill, machine.prctl) if forks else ():
        lines += _when(number, [(_RETURN, 0, 0, _ALLOW)])
    lines += _when(machine.clone, _clone(forks))
    # ENOSYS makes the C library fall back on clone, whose flags can be read here.
    lines += _when(machine.clone3, [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)])
    lines += _when(machine.prlimit64, _own_process_only())
    lines += _when(machine.fcntl, _fcntl())
    # Every open file asks whether it is a terminal; "no" is an answer Python understands, EPERM is not.
    lines += _when(machine.ioctl, [(_RETURN, 0, 0, _ERRNO | errno.ENOTTY)])
    lines.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    return lines


def _when(number: int, lines: list[Instruction]) -> list[Instruction]:
    return [(_IF_EQUAL, 0, len(lines), number), *lines]


def _clone(forks: bool) -> list[Instruction]:
    required = 0xFFFFFFFF if forks else _CLONE_THREAD
    return [
        (_LOAD, 0, 0, _ARGUMENTS),
        (_IF_ANY_BIT, 2, 0, _CLONE_NAMESPACES),
        (_IF_ANY_BIT, 0, 1, required),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]


def _own_process_only() -> list[Instruction]:
    return [
        (_LOAD, 0, 0, _ARGUMENTS),
        (_IF_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]


def _fcntl() -> list[Instruction]:
    lines: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENTS + 8)]
    for command in _FCNTL:
        lines += [(_IF_EQUAL, 0, 1, command), (_RETURN, 0, 0, _ALLOW)]
    return [*lines, (_RETURN, 0, 0, _ERRNO | errno.EPERM)]


class Filter:
    """A compiled filter, ready to be put around the calling process for good."""

    def __init__(self, machine: Machine, *, forks: bool = False) -> None:
        lines = program(machine, forks=forks)
        code = b"".join(struct.pack("HBBI", *line) for line in lines)
        self._code = ctypes.create_string_buffer(code, len(code))
        self._head = ctypes.create_string_buffer(
            struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(self._code)), 16
        )
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def install(self) -> None:
        """Put the filter around this process. Raises: OSError."""
        set_seccomp, filter_mode = 22, 2
        if self._prctl(set_seccomp, filter_mode, self._head, 0, 0):
            number = ctypes.get_errno()
            raise OSError(number, "seccomp refused the filter")
