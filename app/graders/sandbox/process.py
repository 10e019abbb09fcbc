"""One zygote seen from the service: start it, ask it, and be rid of it whatever state it is in.

Every wait has a deadline of its own, since the other side may be anything. No meaning of answers: that is
`app.graders.python`.
"""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.graders.sandbox import launch
from app.graders.sandbox.launch import Level, Limits
from app.graders.sandbox.paths import Visible

START_SECONDS = 60.0
# The zygote ends a call at its deadline; if it hasn't by then plus this, it is ended itself.
PATIENCE_SECONDS = 5.0
_MOST_HEAD = 1 << 20


class ZygoteError(Exception):
    """The zygote did not start, died or fell silent: nothing the user's source was asked about."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one call ended: `exit`, `deadline`, `flood` or a signal's name, and the bytes it left."""

    how: str
    answer: bytes


class Zygote:
    """A running zygote. Not for two threads at once.

    `error` is what the source's own parsing gave; `missing` are imports that are not there.
    """

    def __init__(self, level: Level, seen: Visible, limits: Limits, source: str) -> None:
        """Start one. Raises: ZygoteError."""
        self._limits = limits
        # What the zygote or bubblewrap says when it fails to start; graders themselves are cut off from it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._channel, inner = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                launch.command(level, seen, limits),
                stdin=inner.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=launch.environment(),
                cwd="/",
                close_fds=True,
                start_new_session=True,
            )
        except OSError as problem:
            self._channel.close()
            self._errors.close()
            raise ZygoteError(str(problem)) from problem
        finally:
            inner.close()
        try:
            self._send(launch.parcel(level, seen, limits, source), START_SECONDS)
            hello, _ = self._receive(START_SECONDS)
        except ZygoteError:
            self.close()
            raise
        self.error: str | None = hello.get("error")
        self.missing = tuple(map(str, hello.get("missing", ())))

    @property
    def pid(self) -> int:
        """The process the service started: bubblewrap at level A, the zygote itself at B."""
        return int(self._process.pid)

    def call(self, request: bytes) -> Ended:
        """Make one call. Raises: ZygoteError, after which this zygote is of no more use."""
        head = json.dumps({"seconds": self._limits.seconds}).encode()
        frame = len(head).to_bytes(4, "big") + head + len(request).to_bytes(4, "big") + request
        self._send(frame, PATIENCE_SECONDS)
        reply, answer = self._receive(self._limits.seconds + PATIENCE_SECONDS)
        return Ended(str(reply.get("ended")), answer)

    def close(self) -> None:
        """End the zygote and all it started."""
        self._channel.close()
        # One process group: bubblewrap, its first process, the zygote and a child that may still run.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()

    def _send(self, data: bytes, seconds: float) -> None:
        self._channel.settimeout(seconds)
        try:
            self._channel.sendall(data)
        except OSError as problem:
            raise ZygoteError(self._last_words(problem)) from problem

    def _receive(self, seconds: float) -> tuple[Mapping[str, Any], bytes]:
        until = time.monotonic() + seconds
        try:
            size = int.from_bytes(self._read(4, until), "big")
            if size > _MOST_HEAD:
                raise ZygoteError("the sandbox process answered nonsense")
            head = json.loads(self._read(size, until))
            return head, self._read(int.from_bytes(self._read(4, until), "big"), until)
        except (OSError, ValueError) as problem:
            raise ZygoteError(self._last_words(problem)) from problem

    def _read(self, size: int, until: float) -> bytes:
        found = bytearray()
        while len(found) < size:
            self._channel.settimeout(max(0.01, until - time.monotonic()))
            piece = self._channel.recv(min(size - len(found), 1 << 20))
            if not piece:
                raise ConnectionResetError("the sandbox process has ended")
            found += piece
        return bytes(found)

    def _last_words(self, problem: Exception) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 500))
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        told = "the sandbox process fell silent" if isinstance(problem, TimeoutError) else str(problem)
        return f"{told}: {said[-1]}" if said else told
