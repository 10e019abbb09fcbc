"""Lays the bait, lets the corpus attack from inside a sandbox, and looks at the damage.

`python tests/app/graders/attacks/harness.py LEVEL PACKAGES` prints one JSON line per attack. It needs the
standard library alone, so that any user with any Python can run it. An attack counts as held when its return
value says so, nothing outside has changed, and the next call in the same process is clean.
"""

import ctypes
import json
import os
import resource
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[4]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from app.graders.python import PythonGraders  # noqa: E402
from app.graders.result import Grade  # noqa: E402
from app.graders.sandbox.launch import Level, Limits  # noqa: E402
from app.graders.sandbox.level import Sandbox  # noqa: E402
from app.graders.sandbox.paths import visible  # noqa: E402

CORPUS = Path(__file__).with_name("corpus.py")
LIMITS = Limits(seconds=2.0, memory_bytes=1024**3, scratch_bytes=128 * 1024**2)

# Those that must end as the grader's own error; every other may also return 0.
MUST_FAIL = frozenset(
    f"a{number}" for number in (13, 17, 18, 25, 27, 28, 29, 30, 31, 32)
) | {"x43", "x44"}  # fmt: skip
# What an attack never means to raise; it would look like being held.
_BROKEN = (
    "NameError",
    "TypeError",
    "AttributeError",
    "KeyError",
    "ImportError",
    "ArgumentError",
    "SyntaxError",
)
# May forge its own score, which belongs to it.
MAY_FORGE = frozenset({"a34"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """One attack's result: `held` with an empty `damage`, or what got through."""

    attack: str
    held: bool
    damage: str
    message: str
    seconds: float


def attacks() -> list[str]:
    """Return the names of all attacks, in order."""
    lines = CORPUS.read_text().splitlines()
    names = [line.removeprefix("def ").partition("(")[0] for line in lines if line.startswith("def ")]
    return [name for name in names if name[1:3].isdigit()]


def run(level: Level, packages: Path) -> Iterator[Verdict]:
    """Attack one level with everything, in one warm process."""
    with bait() as (item, damage):
        seen = visible(packages=packages, private=Path(item["private"]))
        with PythonGraders(Sandbox(level, seen), limits=LIMITS, processes=1) as graders:
            source = CORPUS.read_text()

            def call(attack: str) -> Grade:
                return graders.run(source, sample={"output_text": "x"}, item={**item, "attack": attack})

            control = call("control")
            if control.reward != 0.5:
                raise RuntimeError(f"the control failed before any attack: {control.message}")
            for attack in attacks():
                started = time.monotonic()
                grade = call(attack)
                seconds = time.monotonic() - started
                found = [*_wrong_with(attack, grade), *damage()]
                after = call("control")
                if after.reward != 0.5 and attack == "x45_leave_a_folder_nobody_can_clear":
                    after = call("control")  # the process was replaced, as it could not be cleaned
                if after.reward != 0.5:
                    found.append(f"the next call was not clean: {after.message}")
                yield Verdict(attack, not found, "; ".join(found), grade.message or "", round(seconds, 4))


def _wrong_with(attack: str, grade: Grade) -> Iterator[str]:
    if any(name in (grade.message or "") for name in _BROKEN):
        yield f"the attack itself is broken: {grade.message}"
    if grade.fault == "infrastructure":
        yield f"the sandbox itself broke: {grade.message}"
    elif attack[:3] in MUST_FAIL and grade.fault != "grader":
        yield f"it returned {grade.reward} and should have failed"
    elif grade.reward not in (None, 0.0) and attack[:3] not in MAY_FORGE:
        yield f"it returned {grade.reward}"


@contextmanager
def bait() -> Iterator[tuple[dict[str, Any], Callable[[], list[str]]]]:
    """Plant everything an attack may go for; yield where it is, and the look at the damage."""
    mark, known = f"mark-{secrets.token_hex(8)}", f"known-{secrets.token_hex(16)}"
    secret = f"secret-{secrets.token_hex(8)}"
    memory = ctypes.create_string_buffer(known.encode())
    sleep = str(secrets.randbelow(10**6) + 10**6)
    os.environ["TUNESMITH_BAIT"] = mark + secret
    with ExitStack() as stack:
        private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="private-")))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="work-")))
        database = private / "service.db"
        database.write_bytes(b"rows" * 1000)
        servers = _listeners(stack, private, mark)
        folders = [private, work, ROOT, ROOT / "app", Path(os.__file__).parent, Path(tempfile.gettempdir())]
        folders += [Path(name) for name in ("/dev/shm", "/var/tmp", "/", "/etc", str(Path.home()))]
        folders = [folder for folder in folders if os.access(folder, os.X_OK)]
        before = _state(database)
        item = {
            "mark": mark, "secret_reversed": secret[::-1],
            "known": known, "address": ctypes.addressof(memory),
            "private": str(private), "work": str(work), "database": str(database), "pid": os.getpid(),
            "tcp": servers["tcp"].getsockname()[1], "udp": servers["udp"].getsockname()[1],
            "abstract": mark, "socket": str(private / "service.sock"), "sleep": sleep,
            "folders": [str(folder) for folder in folders],
        }  # fmt: skip

        def damage() -> list[str]:
            return [
                *_reached(servers),
                *(f"a file in {folder}" for folder in folders if (folder / mark).exists()),
                *(f"{name} has changed" for name, was in before.items() if _state(database)[name] != was),
                *_sleepers(sleep),
            ]

        try:
            yield item, damage
        finally:
            del os.environ["TUNESMITH_BAIT"]


def _listeners(stack: ExitStack, private: Path, mark: str) -> Mapping[str, socket.socket]:
    servers = {
        "tcp": socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "abstract": socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "path": socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    }
    places: Mapping[str, Any] = {
        "tcp": ("127.0.0.1", 0), "udp": ("127.0.0.1", 0), "abstract": "\0" + mark,
        "path": str(private / "service.sock"),
    }  # fmt: skip
    for name, server in servers.items():
        stack.enter_context(server)
        server.bind(places[name])
        server.setblocking(False)
        if name != "udp":
            server.listen()
    return servers


def _reached(servers: Mapping[str, socket.socket]) -> Iterator[str]:
    for name, server in servers.items():
        try:
            if name == "udp":
                server.recv(16)
            else:
                server.accept()[0].close()
        except BlockingIOError:
            continue
        yield f"the {name} listener was reached"


def _state(database: Path) -> dict[str, Any]:
    there = database.exists()
    about = database.stat() if there else None
    return {
        "the database": database.read_bytes() if there else None,
        "the database's mode": about and (about.st_mode, about.st_uid, about.st_mtime, about.st_nlink),
        "the private folder": sorted(path.name for path in database.parent.iterdir()),
        "our limits": [resource.getrlimit(which) for which in range(resource.RLIMIT_NOFILE + 1)],
        "our processors": os.sched_getaffinity(0),
    }


def _sleepers(sleep: str) -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if sleep in (process / "cmdline").read_text():
                yield f"a process lives on: {process.name}"
        except OSError:
            continue


if __name__ == "__main__":
    for verdict in run(sys.argv[1], Path(sys.argv[2])):  # type: ignore[arg-type]
        print(json.dumps(asdict(verdict)), flush=True)
