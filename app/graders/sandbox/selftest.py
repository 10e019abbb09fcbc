"""The ten attacks every sandbox must withstand before it is trusted: a grader that returns 1 for an escape.

Never imported: `level` reads it as text and runs it like any user's source. `item` says which probe to try
and where the host has laid its bait; probe `control` must return 0.5.
"""

import ctypes
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

Item = Mapping[str, Any]

# CLONE_NEWUSER, as unshare(2) has it.
_NEW_USER_NAMESPACE = 0x10000000


def environment(item: Item) -> float:
    """Find the host's environment: in ours, or in its own process."""
    seen = " ".join(f"{name}={value}" for name, value in os.environ.items())
    with suppress(OSError):
        seen += Path(f"/proc/{item['pid']}/environ").read_text()
    return float("TUNESMITH" in seen or "PATH=" in seen)


def private_file(item: Item) -> float:
    """Read a file of the host's private folder."""
    return float(bool(Path(item["folder"], "secret").read_text()))


def system_file(item: Item) -> float:
    """Read the list of users."""
    return float(bool(Path("/etc/passwd").read_text()))


def write(item: Item) -> float:
    """Leave a file where the host would find it."""
    for folder in (item["folder"], "/dev/shm", "/var/tmp"):
        try:
            Path(folder, item["mark"]).write_text("x")
        except OSError:
            continue
        return 1.0
    return 0.0


def tcp(item: Item) -> float:
    """Reach a server on this machine."""
    socket.create_connection(("127.0.0.1", item["port"]), timeout=1).close()
    return 1.0


def unix(item: Item) -> float:
    """Reach a socket by its abstract name."""
    with socket.socket(socket.AF_UNIX) as own:
        own.connect("\0" + item["mark"])
    return 1.0


def fork(item: Item) -> float:
    """Make a process that outlives the call."""
    if os.fork() == 0:
        os._exit(0)
    return 1.0


def program(item: Item) -> float:
    """Run another program in this one's place."""
    os.execv("/bin/sh", ["sh", "-c", "exit 0"])


def signal(item: Item) -> float:
    """Signal the parent, and change its limits."""
    try:
        os.kill(os.getppid(), 0)
    except OSError:
        libc = ctypes.CDLL(None, use_errno=True)
        room = ctypes.create_string_buffer(16)
        return float(libc.prlimit(os.getppid(), 7, None, room) == 0)
    return 1.0


def kernel(item: Item) -> float:
    """Make memory without limit, or a namespace to be root in."""
    libc = ctypes.CDLL(None, use_errno=True)
    return float(libc.memfd_create(b"x", 0) >= 0 or libc.unshare(_NEW_USER_NAMESPACE) == 0)


PROBES: tuple[Callable[[Item], float], ...] = (
    environment, private_file, system_file, write, tcp, unix, fork, program, signal, kernel
)  # fmt: skip


def grade(sample: Mapping[str, Any], item: Item) -> float:
    """Try one probe."""
    if item["probe"] == "control":
        return 0.5
    probe = next(one for one in PROBES if one.__name__ == item["probe"])
    try:
        return probe(item)
    except OSError:
        return 0.0
