"""The system calls a grader may make, by number, for each processor we know.

What is missing here is refused. Left out on purpose, although much software uses them: `truncate`, `chmod`,
`chown`, `utime`, `link` and the xattr family (Landlock does not govern them on every kernel, and at level B
the files around belong to the same user), `sched_setaffinity`, `kill` in every form, `memfd_create` (its
memory escapes RLIMIT_AS), every socket. `clone`, `prlimit64` and `fcntl` are judged by their arguments in
`seccomp`.

Source: the kernel's tables, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """One processor's calls. `foreign_from` is where another ABI's numbers begin (x32), if one does."""

    audit_arch: int
    allowed: dict[str, int]
    clone: int
    clone3: int
    prlimit64: int
    fcntl: int
    ioctl: int
    kill: int
    prctl: int
    capset: int
    foreign_from: int | None = None


_X86_64 = {
    # Files: which ones is Landlock's affair.
    "read": 0, "write": 1, "readv": 19, "writev": 20, "pread64": 17, "pwrite64": 18, "preadv": 295,
    "pwritev": 296, "close": 3, "close_range": 436, "open": 2, "openat": 257, "fstat": 5, "stat": 4,
    "lstat": 6, "newfstatat": 262, "statx": 332, "lseek": 8, "access": 21, "faccessat": 269,
    "faccessat2": 439, "readlink": 89, "readlinkat": 267, "getdents": 78, "getdents64": 217, "getcwd": 79,
    "chdir": 80, "fchdir": 81, "mkdir": 83, "mkdirat": 258, "rmdir": 84, "unlink": 87, "unlinkat": 263,
    "rename": 82, "renameat": 264, "renameat2": 316, "ftruncate": 77, "fallocate": 285, "fsync": 74,
    "fdatasync": 75, "flock": 73, "fadvise64": 221, "statfs": 137, "fstatfs": 138, "umask": 95,
    # Waiting on what is open already.
    "poll": 7, "ppoll": 271, "select": 23, "pselect6": 270, "epoll_create": 213, "epoll_create1": 291,
    "epoll_ctl": 233, "epoll_wait": 232, "epoll_pwait": 281, "eventfd2": 290, "pipe": 22, "pipe2": 293,
    "dup": 32, "dup2": 33, "dup3": 292,
    # Memory.
    "mmap": 9, "mprotect": 10, "munmap": 11, "mremap": 25, "madvise": 28, "brk": 12, "membarrier": 324,
    # Its own signals, threads and limits.
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "rt_sigpending": 127,
    "rt_sigtimedwait": 128, "rt_sigsuspend": 130, "sigaltstack": 131, "pause": 34, "alarm": 37,
    "setitimer": 38, "getitimer": 36, "futex": 202, "set_robust_list": 273, "set_tid_address": 218,
    "rseq": 334, "sched_yield": 24, "sched_getaffinity": 204, "getcpu": 309, "getrlimit": 97,
    "setrlimit": 160, "wait4": 61, "waitid": 247, "restart_syscall": 219, "exit": 60, "exit_group": 231,
    # Who and when.
    "getpid": 39, "getppid": 110, "gettid": 186, "getuid": 102, "geteuid": 107, "getgid": 104,
    "getegid": 108, "getgroups": 115, "getresuid": 118, "getresgid": 120, "getpgrp": 111, "getpgid": 121,
    "getsid": 124, "getrandom": 318, "nanosleep": 35, "clock_nanosleep": 230, "clock_gettime": 228,
    "clock_getres": 229, "gettimeofday": 96, "time": 201, "times": 100, "getrusage": 98, "sysinfo": 99,
    "uname": 63,
}  # fmt: skip

_AARCH64 = {
    "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68, "preadv": 69,
    "pwritev": 70, "close": 57, "close_range": 436, "openat": 56, "fstat": 80, "newfstatat": 79,
    "statx": 291, "lseek": 62, "faccessat": 48, "faccessat2": 439, "readlinkat": 78, "getdents64": 61,
    "getcwd": 17, "chdir": 49, "fchdir": 50, "mkdirat": 34, "unlinkat": 35, "renameat": 38,
    "renameat2": 276, "ftruncate": 46, "fallocate": 47, "fsync": 82, "fdatasync": 83, "flock": 32,
    "fadvise64": 223, "statfs": 43, "fstatfs": 44, "umask": 166, "ppoll": 73, "pselect6": 72,
    "epoll_create1": 20, "epoll_ctl": 21, "epoll_pwait": 22, "eventfd2": 19, "pipe2": 59, "dup": 23,
    "dup3": 24, "mmap": 222, "mprotect": 226, "munmap": 215, "mremap": 216, "madvise": 233, "brk": 214,
    "membarrier": 283, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139,
    "rt_sigpending": 136, "rt_sigtimedwait": 137, "rt_sigsuspend": 133, "sigaltstack": 132,
    "setitimer": 103, "getitimer": 102, "futex": 98, "set_robust_list": 99, "set_tid_address": 96,
    "rseq": 293, "sched_yield": 124, "sched_getaffinity": 123, "getcpu": 168, "getrlimit": 163,
    "setrlimit": 164, "wait4": 260, "waitid": 95, "restart_syscall": 128, "exit": 93, "exit_group": 94,
    "getpid": 172, "getppid": 173, "gettid": 178, "getuid": 174, "geteuid": 175, "getgid": 176,
    "getegid": 177, "getgroups": 158, "getresuid": 148, "getresgid": 150, "getpgid": 155, "getsid": 156,
    "getrandom": 278, "nanosleep": 101, "clock_nanosleep": 115, "clock_gettime": 113, "clock_getres": 114,
    "gettimeofday": 169, "times": 153, "getrusage": 165, "sysinfo": 179, "uname": 160,
}  # fmt: skip

MACHINES = {
    "x86_64": Machine(
        audit_arch=0xC000003E, allowed=_X86_64, clone=56, clone3=435, prlimit64=302, fcntl=72, ioctl=16,
        kill=62, prctl=157, capset=126, foreign_from=0x40000000,
    ),
    "aarch64": Machine(
        audit_arch=0xC00000B7, allowed=_AARCH64, clone=220, clone3=435, prlimit64=261, fcntl=25, ioctl=29,
        kill=129, prctl=167, capset=91,
    ),
}  # fmt: skip
