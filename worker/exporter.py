"""Keeps one exporter process at work while exports wait: claims, spawns, renews, reaps.

Driven by the supervisor's rounds; what an export is stands in `worker/export/`.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys

from app.core.context import Context
from app.services import exports
from app.services.exports import Lease, LeaseLost

logger = logging.getLogger("worker.exporter")

_TIDY_SECONDS = 3.0


class Exporter:
    """At most one export is built at a time: each loads whole models."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lease: Lease | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_busy(self) -> bool:
        """True while a process runs."""
        return self._process is not None

    def round(self) -> None:
        """Look after the running process, or start one for the oldest export that waits."""
        if self._process is not None and self._lease is not None:
            self._look_after(self._process, self._lease)
        if self._process is None:
            self._start()

    def stop(self) -> None:
        """End the running process; its export goes back to the queue, uncounted."""
        if self._process is not None and self._lease is not None:
            self._kill(self._process)
            self._give_back(self._lease, counted=False)

    def _look_after(self, process: "subprocess.Popen[bytes]", lease: Lease) -> None:
        code = process.poll()
        if code is not None:
            logger.info("export %s: process ended with %s", lease.export_id, code)
            self._give_back(lease, counted=True)
            return
        try:
            with self._context.db.transaction() as session:
                exports.renew(session, lease=lease, seconds=self._context.settings.lease_seconds)
        except LeaseLost:
            # Deleted, or it has just ended: it tidies up, and a process that goes on would write for nobody.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_TIDY_SECONDS)
            self._kill(process)
            self._give_back(lease, counted=True)

    def _start(self) -> None:
        with self._context.db.reading() as session:
            if not exports.is_waiting(session):
                return
        with self._context.db.transaction() as session:
            lease = exports.claim(session, seconds=self._context.settings.lease_seconds)
        if lease is None:
            return
        command = [sys.executable, "-m", "worker.export", lease.export_id, str(lease.token), str(os.getpid())]
        self._lease, self._process = lease, subprocess.Popen(command, start_new_session=True)
        logger.info("export %s: process %s started", lease.export_id, self._process.pid)

    def _give_back(self, lease: Lease, *, counted: bool) -> None:
        self._lease = self._process = None
        with self._context.db.transaction() as session:
            exports.abandon(session, lease=lease, counted=counted)

    @staticmethod
    def _kill(process: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
