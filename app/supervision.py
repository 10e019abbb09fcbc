"""The supervisor: starts the embedded parts, starts each anew when it dies, and ends them in order.

Runs in the foreground as `python -m app.cli serve`; `up` starts that in the background. What a part is
stands in `app.parts`.
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from types import FrameType

from app import parts
from app.core.settings import Settings

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.25
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# A part that lived so long starts its back-off from the beginning.
SETTLED_SECONDS = 20.0
LOG_BYTES = 10 * 1024 * 1024


class AlreadyRunning(Exception):
    """Another supervisor holds this data folder."""


class Keeper:
    """One part and its present process."""

    def __init__(self, part: parts.Part, settings: Settings) -> None:
        self.part = part
        self._settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self._deaths = 0
        self._started = 0.0
        self._not_before = 0.0

    def tend(self) -> None:
        """Start the part when it isn't running and its back-off has passed."""
        if self.process is not None and (code := self.process.poll()) is not None:
            parts.stop(self.process, 0)  # what its group left behind
            self.process = None
            self._put_off(_ending(code))
        if self.process is None and time.monotonic() >= self._not_before:
            self._started = time.monotonic()
            try:
                self.process = parts.start(self.part, self._settings)
            except OSError as problem:
                self._put_off(f"not started: {problem}")
            else:
                logger.info("%s started, pid %d", self.part.name, self.process.pid)

    def _put_off(self, reason: str) -> None:
        now = time.monotonic()
        self._deaths = 1 if now - self._started > SETTLED_SECONDS else self._deaths + 1
        pause = BACKOFF_SECONDS[min(self._deaths, len(BACKOFF_SECONDS)) - 1]
        self._not_before = now + pause
        logger.warning("%s ended (%s); starting it again in %g s", self.part.name, reason, pause)

    def stop(self) -> None:
        """End the part."""
        if self.process is not None:
            parts.stop(self.process, parts.GRACE_SECONDS[self.part.name])
            self.process = None
            logger.info("%s stopped", self.part.name)


class Supervisor:
    """Runs the parts of one data folder until it is told to stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()

    def run(self) -> None:
        """Start everything and return once a signal has ended it all.

        Raises: AlreadyRunning when this data folder has a supervisor.
        """
        settings = self._settings
        lock = parts.take(parts.run_folder(settings) / "service.lock")
        if lock is None:
            raise AlreadyRunning
        parts.say(lock, {"pid": os.getpid(), "address": settings.address})
        os.set_inheritable(lock, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        for name in reversed(parts.NAMES):
            if parts.end_leftover(settings, name, parts.GRACE_SECONDS[name]):
                logger.warning("ended the %s of an earlier start", name)
        keepers = [Keeper(part, settings) for part in parts.embedded(settings)]
        if settings.embedded_broker and keepers[0].part.name != "broker":
            logger.warning("no Valkey or Redis server found: the worker finds new work by polling alone")
        try:
            self._tend(keepers)
        finally:
            for keeper in reversed(keepers):
                keeper.stop()
            os.close(lock)

    def _tend(self, keepers: list[Keeper]) -> None:
        for keeper in keepers:
            keeper.tend()
            if keeper.part.name == "broker":
                self._await_broker()
        while not self._stopping.wait(TICK_SECONDS):
            for keeper in keepers:
                keeper.tend()
                rotate(self._settings, keeper.part.name)
            rotate(self._settings, "service")

    def _await_broker(self) -> None:
        # The worker would retry by itself, but says so in alarming words.
        until = time.monotonic() + 5
        while time.monotonic() < until and not self._stopping.is_set():
            with socket.socket(socket.AF_UNIX) as client:
                if client.connect_ex(str(self._settings.socket)) == 0:
                    return
            time.sleep(0.02)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping.set()


def rotate(settings: Settings, name: str) -> None:
    """Move a log that has grown too long to `<name>.log.1` and go on with an empty one."""
    path = parts.log_file(settings, name)
    if path.is_file() and path.stat().st_size > LOG_BYTES:
        # Copied and cut, not renamed: the writers keep their descriptor, which appends.
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
