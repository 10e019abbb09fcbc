"""The supervisor: a thread of the Celery worker that claims jobs and spawns a trainer for each.

It wakes on a message or by polling, whichever comes first; the database alone says what there is to do.
Called by `tasks.py` when the worker starts and stops.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from app.core.context import Context
from app.core.db import Database, journal_mode, sqlite_module
from app.core.tables import Job
from app.graders.sandbox.level import SandboxUnavailable, choose
from app.services import acceptances, exports, files, heartbeats, leases, models, uploads
from app.services.leases import Lease
from worker import delivery, results, retention
from worker import models as store
from worker.engine import machine
from worker.exporter import Exporter

logger = logging.getLogger("worker.supervisor")

BEAT_SECONDS = 5.0
SWEEP_SECONDS = 10.0
RETENTION_SECONDS = 3600.0
# How long a trainer may take to finish its step when the worker is asked to stop.
GRACE_SECONDS = 25.0


@dataclass(slots=True)
class Trainer:
    """A running trainer process and the lease it works under."""

    lease: Lease
    process: "subprocess.Popen[bytes]"
    lost_at: float | None = None


class Supervisor(threading.Thread):
    """Keeps up to `settings.trainers` trainers at work until stopped."""

    def __init__(self, context: Context) -> None:
        super().__init__(name="supervisor", daemon=True)
        self._context = context
        self._settings = context.settings
        self._wake = threading.Event()
        # Not `_stop`: that name is the Thread's own.
        self._stopping = threading.Event()
        self._trainers: list[Trainer] = []
        self._exporter = Exporter(context)
        self._delivery = threading.Thread(name="delivery")
        self._sandbox = "not tried yet"
        self._due = {"beat": 0.0, "sweep": 0.0, "retention": 0.0}

    def wake(self) -> None:
        """Look at the database now."""
        self._wake.set()

    def stop(self) -> None:
        """Stop claiming, let the trainers finish their step, and end those that don't in time."""
        self._stopping.set()
        self._wake.set()
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        """Work until stopped. A database that is away is waited for."""
        # Beside this thread: attacking it takes a second, and jobs without Python graders need none.
        threading.Thread(target=self._try_sandbox, name="sandbox", daemon=True).start()
        while not self._stopping.is_set():
            try:
                self._round()
            except Exception:  # boundary: the supervisor must outlive any one failure
                logger.exception("a round of the supervisor failed")
            self._wake.wait(self._pause())
            self._wake.clear()
        self._end_trainers()

    def _round(self) -> None:
        self._reap()
        self._fence()
        if self._is_due("beat", BEAT_SECONDS):
            self._beat()
        if self._is_due("sweep", SWEEP_SECONDS):
            self._sweep()
        if self._is_due("retention", RETENTION_SECONDS):
            retention.forget_old_texts(self._context)
            retention.forget_old_conversations(self._context)
            retention.remove_unnamed(self._context, older_than=RETENTION_SECONDS)
        while len(self._trainers) < self._settings.trainers and self._claim():
            pass
        self._exporter.round()

    def _pause(self) -> float:
        # While a process runs, its end or its loss of the lease should be seen soon.
        is_busy = self._trainers or self._exporter.is_busy
        return min(self._settings.poll_seconds, 0.5 if is_busy else BEAT_SECONDS)

    def _is_due(self, name: str, every: float) -> bool:
        if time.monotonic() < self._due[name]:
            return False
        self._due[name] = time.monotonic() + every
        return True

    def _claim(self) -> bool:
        owner = f"{socket.gethostname()}:{os.getpid()}"
        with self._context.db.transaction() as session:
            lease = leases.claim(
                session,
                owner=owner,
                seconds=self._settings.lease_seconds,
                max_attempts=self._settings.max_attempts,
            )
        if lease is None:
            return False
        command = [sys.executable, "-m", "worker.trainer", lease.job_id, str(lease.token)]
        command.append(str(os.getpid()))
        # A session of its own: the whole group, grader processes included, can be ended at once.
        self._trainers.append(Trainer(lease, subprocess.Popen(command, start_new_session=True)))
        logger.info("job %s: trainer %s started", lease.job_id, self._trainers[-1].process.pid)
        return True

    def _reap(self, *, counted: bool = True) -> None:
        for trainer in list(self._trainers):
            code = trainer.process.poll()
            if code is None:
                continue
            self._trainers.remove(trainer)
            logger.info("job %s: trainer ended with %s", trainer.lease.job_id, code)
            self._kill_group(trainer)
            # A trainer that ended well gave its lease up already, and this changes nothing.
            with self._context.db.transaction() as session:
                leases.abandon(
                    session, lease=trainer.lease, back_off=0.0 if code < 0 else 2.0, counted=counted
                )

    def _fence(self) -> None:
        """End trainers whose job was cancelled or taken over, and those that outlive theirs."""
        for trainer in self._trainers:
            with self._context.db.reading() as session:
                job = session.get_one(Job, trainer.lease.job_id)
            if job.lease_owner is not None and job.lease_token == trainer.lease.token:
                continue
            trainer.lost_at = trainer.lost_at or time.monotonic()
            # A trainer that gave its lease up by itself is about to leave.
            foreign = job.status == "cancelled" or job.lease_owner is not None
            if foreign or time.monotonic() - trainer.lost_at > GRACE_SECONDS:
                logger.info("job %s: trainer fenced", trainer.lease.job_id)
                self._kill_group(trainer)

    def _end_trainers(self) -> None:
        self._exporter.stop()
        for trainer in self._trainers:
            trainer.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for trainer in self._trainers:
            if not self._ends_within(trainer, max(0.0, deadline - time.monotonic())):
                self._kill_group(trainer)
                trainer.process.wait()
        # Whatever was cut off here was cut off by us: no attempt is counted.
        self._reap(counted=False)

    @staticmethod
    def _ends_within(trainer: Trainer, seconds: float) -> bool:
        try:
            trainer.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    @staticmethod
    def _kill_group(trainer: Trainer) -> None:
        try:
            os.killpg(trainer.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _beat(self) -> None:
        with self._context.db.transaction() as session:
            heartbeats.beat(session, part="worker", detail=self._detail())
        found = {model.id: asdict(model) for model in store.scan(self._settings)}
        for details in found.values():
            details["path"] = str(details["path"]) if details["path"] else None
        with self._context.db.transaction() as session:
            models.register_base_models(session, found=found)

    def _try_sandbox(self) -> None:
        try:
            packages = self._settings.grader_packages.expanduser().resolve()
            self._sandbox = choose(packages=packages, private=self._settings.root).description
        except SandboxUnavailable as problem:
            self._sandbox = f"none: {problem.message}"

    def _detail(self) -> dict[str, object]:
        return {
            "cores": os.cpu_count(),
            "machine": machine.identity(),
            "device": device(),
            "trainers": [trainer.lease.job_id for trainer in self._trainers],
            "slots": self._settings.trainers,
            "database": describe(self._context.db),
            "sandbox": self._sandbox,
        }

    def _sweep(self) -> None:
        with self._context.db.transaction() as session:
            leases.sweep(session, max_attempts=self._settings.max_attempts)
            exports.sweep(session)
            files.delete_expired(session, storage=self._context.storage)
            uploads.end_expired(session, storage=self._context.storage)
            acceptances.forget_old(session)
        results.write_missing(self._context)
        if not self._delivery.is_alive():
            # Beside this thread: a slow endpoint must not keep a job waiting.
            self._delivery = threading.Thread(
                target=delivery.deliver_due, args=(self._context,), name="delivery", daemon=True
            )
            self._delivery.start()


def describe(database: Database) -> str:
    """Say which database this is and, for SQLite, which library and journal."""
    if not database.is_sqlite:
        return database.url.get_backend_name()
    return f"SQLite {sqlite_module().sqlite_version}, journal {journal_mode()}"


def device() -> str:
    """Say what trainers will compute on, without loading torch into this process."""
    gpus = list(Path("/dev").glob("nvidia[0-9]*"))
    return f"GPU ({len(gpus)})" if gpus else "CPU"
