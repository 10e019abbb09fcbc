"""Which sandbox this machine can give, found by attacking it: level A, else B, else none at all.

There is no weaker level to fall back on: where neither holds, Python graders are refused, with what to do.
Called by `app.graders.python` and, for the line of `make status`, by the doctor.

Source: reliability.md §3.3, levels A and B.
"""

import json
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from app.core.errors import Unavailable
from app.graders.sandbox import landlock, launch
from app.graders.sandbox.launch import Level, Limits
from app.graders.sandbox.paths import Exposed, Visible, visible
from app.graders.sandbox.process import Zygote, ZygoteError

PROBES = (
    "environment", "private_file", "system_file", "write", "tcp", "unix", "fork", "program", "signal",
    "kernel",
)  # fmt: skip
_MEANS: Mapping[Level, str] = {
    "A": "bubblewrap's namespaces, Landlock, a system call filter, resource limits",
    "B": "Landlock, a system call filter, resource limits",
}


class SandboxUnavailable(Unavailable):
    """No sandbox holds on this machine, so no Python grader runs on it."""

    default_code = "grader_sandbox_unavailable"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A level that withstood its self-test. `missed` says why no better one was taken, where it wasn't."""

    level: Level
    seen: Visible
    missed: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """One line for people: the level, what it is made of, and what a better one would need."""
        text = f"level {self.level} ({_MEANS[self.level]}; {len(PROBES)} of {len(PROBES)} attacks held)"
        return "; ".join((text, *self.missed))

    def start(self, source: str, limits: Limits) -> Zygote:
        """Start a warm process for one grader. Raises: ZygoteError."""
        return Zygote(self.level, self.seen, limits, source)


@cache
def choose(*, packages: Path, private: Path) -> Sandbox:
    """Return the best sandbox that holds here; asked once per process.

    Raises: SandboxUnavailable, saying what to install.
    """
    reasons: list[str] = []
    lacking = launch.supported()
    if lacking is not None:
        raise SandboxUnavailable(f"Python graders can't run here: {lacking}.")
    try:
        seen = visible(packages=packages, private=private)
    except Exposed as problem:
        raise SandboxUnavailable(f"Python graders can't run here: {problem}. Move TUNESMITH_DATA.") from None
    if landlock.abi() < 1:
        raise SandboxUnavailable(
            "Python graders can't run here: the kernel has no Landlock. Use Linux 5.13 or newer with "
            "`landlock` among its security modules (`lsm=landlock,...` on the kernel's command line)."
        )
    levels: tuple[Level, ...] = ("A", "B")
    for level in levels:
        problem_found = trouble(level, seen)
        if problem_found is None:
            return Sandbox(level, seen, tuple(reasons))
        reasons.append(f"level {level}: {problem_found}")
    raise SandboxUnavailable(
        f"Python graders can't run here, because no sandbox holds: {'; '.join(reasons)}. "
        "Install bubblewrap (`apt install bubblewrap`) and see 'The sandbox' in docs/operations.md."
    )


def trouble(level: Level, seen: Visible) -> str | None:
    """Attack a level with ten probes; return what is wrong with it, or None where all were held."""
    if level == "A" and launch.bubblewrap() is None:
        return "bubblewrap is not installed"
    source = (Path(__file__).with_name("selftest.py")).read_text()
    try:
        with _bait() as bait:
            zygote = Zygote(level, seen, Limits(seconds=5.0, memory_bytes=1 << 30), source)
            try:
                return _attacked(zygote, bait)
            finally:
                zygote.close()
    except (ZygoteError, OSError) as problem:
        return str(problem)


def _attacked(zygote: Zygote, bait: Mapping[str, Any]) -> str | None:
    for probe, right in (("control", 0.5), *((name, 0.0) for name in PROBES)):
        ended = zygote.call(json.dumps([{}, {**bait, "probe": probe}]).encode())
        if ended.how != "exit" or ended.answer != json.dumps({"reward": right}).encode():
            said = ended.answer.decode("utf-8", "replace")[-200:]
            return f"the self-test '{probe}' ended with {ended.how} {said}"
    return None


@contextmanager
def _bait() -> Iterator[dict[str, Any]]:
    """Lay out what the probes go for: a private folder, a TCP listener, an abstract socket."""
    mark = f"tunesmith-{secrets.token_hex(8)}"
    with (
        tempfile.TemporaryDirectory(prefix="tunesmith-bait-") as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        Path(folder, "secret").write_text(mark)
        abstract.bind("\0" + mark)
        abstract.listen()
        port = server.getsockname()[1]
        yield {"folder": folder, "mark": mark, "port": port, "pid": os.getpid()}
        if Path(folder, mark).exists():
            raise ZygoteError("a file appeared in the host's private folder")
