"""The system call filter, run by a small machine of our own, for both processors."""

import errno
from typing import Any

import pytest

from app.graders.sandbox.seccomp import program
from app.graders.sandbox.syscalls import MACHINES, Machine

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
X86, ARM = MACHINES["x86_64"], MACHINES["aarch64"]


@pytest.fixture(params=[X86, ARM], ids=["x86_64", "aarch64"])
def machine(request: pytest.FixtureRequest) -> Any:
    return request.param


def _verdict(
    machine: Machine, number: int, *arguments: int, arch: int | None = None, forks: bool = False
) -> int:
    """Run the filter as the kernel would. Source: bpf(4), the classic instructions."""
    data = {0: number, 4: machine.audit_arch if arch is None else arch}
    for index, argument in enumerate(arguments):
        data[16 + 8 * index], data[20 + 8 * index] = argument & 0xFFFFFFFF, argument >> 32
    lines, place, register = program(machine, forks=forks), 0, 0
    while True:
        code, when_true, when_false, operand = lines[place]
        place += 1
        match code:
            case 0x20:
                register = data.get(operand, 0)
            case 0x15:
                place += when_true if register == operand else when_false
            case 0x35:
                place += when_true if register >= operand else when_false
            case 0x45:
                place += when_true if register & operand else when_false
            case 0x06:
                return operand
            case _:
                raise AssertionError(f"instruction {code:#x}")


def test_what_is_listed_is_allowed_and_every_other_number_is_not(machine: Machine) -> None:
    judged = {machine.clone, machine.clone3, machine.prlimit64, machine.fcntl, machine.ioctl}
    for number in range(600):
        if number in judged:
            continue
        expected = ALLOW if number in machine.allowed.values() else ERRNO | errno.EPERM
        assert _verdict(machine, number) == expected, number


def test_no_call_is_listed_twice_or_beside_its_own_rule(machine: Machine) -> None:
    numbers = [*machine.allowed.values(), machine.clone, machine.clone3, machine.prlimit64, machine.fcntl]
    assert len(numbers) == len(set(numbers))


# From the kernel's tables: name, x86-64, arm64.
REFUSED = [
    ("kill", 62, 129), ("tkill", 200, 130), ("tgkill", 234, 131), ("rt_sigqueueinfo", 129, 138),
    ("ptrace", 101, 117), ("process_vm_readv", 310, 270), ("process_vm_writev", 311, 271),
    ("execve", 59, 221), ("execveat", 322, 281), ("socket", 41, 198), ("connect", 42, 203),
    ("memfd_create", 319, 279), ("unshare", 272, 97), ("setns", 308, 268), ("mount", 165, 40),
    ("bpf", 321, 280), ("io_uring_setup", 425, 425), ("keyctl", 250, 219), ("pidfd_open", 434, 434),
    ("pidfd_send_signal", 424, 424), ("seccomp", 317, 277), ("prctl", 157, 167), ("truncate", 76, 45),
    ("sched_setaffinity", 203, 122), ("fchmodat", 268, 53), ("fchownat", 260, 54), ("linkat", 265, 37),
    ("symlinkat", 266, 36), ("utimensat", 280, 88), ("setxattr", 188, 5), ("mknodat", 259, 33),
    ("setuid", 105, 146), ("capset", 126, 91), ("setpriority", 141, 140), ("perf_event_open", 298, 241),
    ("userfaultfd", 323, 282), ("landlock_restrict_self", 446, 446), ("setsid", 112, 157),
]  # fmt: skip


@pytest.mark.parametrize(("name", "x86", "arm"), REFUSED)
def test_a_dangerous_call_is_refused(name: str, x86: int, arm: int) -> None:
    assert _verdict(X86, x86) == ERRNO | errno.EPERM
    assert _verdict(ARM, arm) == ERRNO | errno.EPERM


def test_fork_and_vfork_are_refused_where_they_exist() -> None:
    assert _verdict(X86, 57) == _verdict(X86, 58) == ERRNO | errno.EPERM


@pytest.mark.parametrize(
    ("flags", "allowed"),
    [
        (0x3D0F00, True),  # as the C library makes a thread
        (0x11, False),  # fork: SIGCHLD and no thread
        (0x1200011, False),
        (0x10000000 | 0x3D0F00, False),  # a thread in a new user namespace
        (0x00020000 | 0x3D0F00, False),
        (0x40000000 | 0x3D0F00, False),
    ],
)
def test_clone_makes_threads_alone(machine: Machine, flags: int, allowed: bool) -> None:
    expected = ALLOW if allowed else ERRNO | errno.EPERM
    assert _verdict(machine, machine.clone, flags) == expected


def test_the_zygote_may_fork_and_kill_besides_and_nothing_else(machine: Machine) -> None:
    fork, new_user = 0x01200011, 0x10000011
    assert _verdict(machine, machine.clone, fork, forks=True) == ALLOW
    assert _verdict(machine, machine.clone, new_user, forks=True) == ERRNO | errno.EPERM
    judged = {machine.clone, machine.prlimit64, machine.fcntl}
    more = [
        number
        for number in range(600)
        if number not in judged and _verdict(machine, number) != _verdict(machine, number, forks=True)
    ]
    assert more == sorted([machine.kill, machine.prctl])


def test_clone3_is_unknown_so_that_the_c_library_falls_back(machine: Machine) -> None:
    assert _verdict(machine, machine.clone3) == ERRNO | errno.ENOSYS


def test_limits_are_its_own_alone(machine: Machine) -> None:
    assert _verdict(machine, machine.prlimit64, 0) == ALLOW
    assert _verdict(machine, machine.prlimit64, 1) == ERRNO | errno.EPERM


@pytest.mark.parametrize(
    ("command", "allowed"), [(1, True), (4, True), (1030, True), (8, False), (10, False)]
)
def test_fcntl_sends_no_signals(machine: Machine, command: int, allowed: bool) -> None:
    """F_SETOWN is 8, F_SETSIG is 10."""
    expected = ALLOW if allowed else ERRNO | errno.EPERM
    assert _verdict(machine, machine.fcntl, 3, command) == expected


def test_every_device_question_is_answered_with_no(machine: Machine) -> None:
    assert _verdict(machine, machine.ioctl, 0, 0x5401) == ERRNO | errno.ENOTTY


def test_another_abi_is_deadly(machine: Machine) -> None:
    """32-bit calls and x32 have other numbers for the same things."""
    i386 = 0x40000003
    assert _verdict(machine, machine.allowed["read"], arch=i386) == KILL
    assert _verdict(X86, 0x40000000 | 59) == KILL


def test_the_two_tables_allow_the_same() -> None:
    """What arm64 lacks are old names of calls it has under newer ones."""
    assert not set(ARM.allowed) - set(X86.allowed)
    assert sorted(set(X86.allowed) - set(ARM.allowed)) == [
        "access", "alarm", "dup2", "epoll_create", "epoll_wait", "getdents", "getpgrp", "lstat", "mkdir",
        "open", "pause", "pipe", "poll", "readlink", "rename", "rmdir", "select", "stat", "time", "unlink",
    ]  # fmt: skip
