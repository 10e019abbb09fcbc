"""How a zygote is started at each level: the command line, and the plan it is sent.

The modules that run inside travel as text over the request channel, so that the sandbox needs no path to this
program. Level A puts bubblewrap's namespaces around it; what is given up inside is the same at both levels.
"""

import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.graders.sandbox.paths import DEVICES, Visible, reachable

Level = Literal["A", "B"]

_INSIDE = ("syscalls", "seccomp", "landlock", "confine", "source", "call", "zygote")
# A gigabyte of disk at OpenAI.
MOST_SCRATCH = 1024**3
_SCRATCH = "/scratch"
_TASKS = 64
# The overflow id, the same on every Linux.
_NOBODY = 65534

# Reads one frame, makes modules of it, begins. `-c` text, because no file of ours is visible inside.
_BOOT = """
import json, os, sys, types
def read(size):
    found = b""
    while len(found) < size:
        piece = os.read(0, size - len(found))
        if not piece:
            os._exit(0)
        found += piece
    return found
parcel = json.loads(read(int.from_bytes(read(4), "big")))
for name in ("app", "app.graders", "app.graders.sandbox"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, text in parcel["modules"]:
    module = sys.modules["app.graders.sandbox." + name] = types.ModuleType("app.graders.sandbox." + name)
    setattr(sys.modules["app.graders.sandbox"], name, module)
    exec(compile(text, name + ".py", "exec"), module.__dict__)
module.main(parcel["plan"])
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use, OpenAI's limits. Scratch is memory here, not disk. Units: bytes, seconds."""

    seconds: float = 120.0
    memory_bytes: int = 2 * 1024**3
    scratch_bytes: int = MOST_SCRATCH


def command(level: Level, seen: Visible, limits: Limits) -> list[str]:
    """Return the command that starts a zygote."""
    python = [str(seen.interpreter), "-S", "-s", "-P", "-B", "-c", _BOOT]
    inner = [*_bubblewrap(seen, limits), *python] if level == "A" else python
    # Whatever runs short of memory on this machine, a grader dies before anything of ours.
    prefer = 'echo 1000 2>/dev/null >/proc/self/oom_score_adj; exec "$@"'
    return ["/bin/sh", "-c", prefer, "sh", *inner]


def environment() -> dict[str, str]:
    """Return all a grader sees of an environment. One thread per library: a fork takes no threads along."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
    # A fixed hash seed: a set's order must not change a reward from one process to the next.
    own = {"LANG": "C.UTF-8", "HOME": "/nonexistent", "TMPDIR": _SCRATCH, "PYTHONUTF8": "1"}
    return {**own, "PYTHONHASHSEED": "0", **threads}


def parcel(level: Level, seen: Visible, limits: Limits, source: str) -> bytes:
    """Return the first frame: the modules that run inside, and the plan."""
    here = Path(__file__).parent
    modules = [(name, (here / f"{name}.py").read_text()) for name in _INSIDE]
    text = json.dumps({"modules": modules, "plan": _plan(level, seen, limits, source)}).encode()
    return len(text).to_bytes(4, "big") + text


def supported() -> str | None:
    """Say why no level can work here, or None."""
    if platform.system() != "Linux":
        return (
            f"{platform.system()} has none of its means: run the service on Linux, in a container or in WSL2"
        )
    if platform.machine() not in ("x86_64", "aarch64"):
        return f"there is no system call table for the processor {platform.machine()}"
    return None


def bubblewrap() -> str | None:
    """Return the path of bubblewrap."""
    return shutil.which("bwrap")


def _plan(level: Level, seen: Visible, limits: Limits, source: str) -> Mapping[str, Any]:
    root = os.geteuid() == 0
    private = [path for path in seen.read if not reachable(path, through=level == "B")]
    uid = _NOBODY if root else os.getuid()
    return {
        "source": source,
        "packages": [str(seen.packages)] if seen.packages else [],
        "read": [str(path) for path in seen.read] + ["/dev/urandom"],
        "write": ["/dev/null"],
        "scratch": _SCRATCH if level == "A" else None,
        "uid": uid if root else None,
        "gid": uid if root else None,
        # An interpreter in root's own folder: nobody may pass through it to what Landlock lets be read.
        "keep_read_search": root and bool(private),
        "seconds": limits.seconds,
        "memory_bytes": limits.memory_bytes,
        "file_bytes": limits.scratch_bytes,
        "tasks": _TASKS + (0 if level == "A" and not root else _tasks_of(uid)),
    }


def _bubblewrap(seen: Visible, limits: Limits) -> list[str]:
    program = bubblewrap()
    assert program is not None
    namespaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if os.geteuid() != 0:
        # Root becomes nobody inside instead: a stranger on the whole machine, not only in a namespace.
        namespaces.insert(0, "--unshare-user")
    binds = [part for path in seen.read for part in ("--ro-bind", str(path), str(path))]
    # By itself bubblewrap makes parents as closed as those outside, and nobody could not pass.
    shown = [*seen.read, *map(Path, DEVICES)]
    parents = {parent: None for path in shown for parent in list(reversed(path.parents))[1:]}
    folders = [part for path in parents for part in ("--perms", "0755", "--dir", str(path))]
    links = [part for target, place in seen.links for part in ("--symlink", target, place)]
    devices = [part for path in DEVICES for part in ("--dev-bind", path, path)]
    scratch = ["--perms", "1777", "--size", str(limits.scratch_bytes), "--tmpfs", _SCRATCH]
    finish = ["--hostname", "grader", "--remount-ro", "/", "--chdir", "/"]
    return [program, *namespaces, *folders, *binds, *links, *devices, *scratch, *finish]


def _tasks_of(uid: int) -> int:
    """Return how many threads a user has: RLIMIT_NPROC counts them all, whoever started them."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == uid:
                count += sum(1 for _ in (process / "task").iterdir())
        except OSError:
            continue  # it has ended
    return count
