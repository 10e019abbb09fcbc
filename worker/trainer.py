"""The trainer process: `python -m worker.trainer JOB_ID TOKEN PARENT`, one for each claim of a job.

A fresh process gives CUDA a clean start and memory a sure return. It renews the lease, watches its
parent, and obeys SIGTERM; what training is stands in the runner.

Source: process shape of reliability.md §1.2.
"""

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType

from app.core.context import Context
from app.core.settings import Settings
from app.core.tables import Job
from app.services import events, leases
from app.services.leases import Lease, LeaseLost
from worker.engine import machine

logger = logging.getLogger("worker.trainer")

# Exit codes the supervisor reads.
DONE, CRASHED, LOST = 0, 1, 3


class Heartbeat(threading.Thread):
    """Renews the lease in the background; ends the whole process when the job is no longer ours.

    `os._exit` and not an exception: the main thread may sit inside a long matrix product, and must not
    get to write anything afterwards.
    """

    def __init__(self, context: Context, lease: Lease, parent: int) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._context = context
        self._lease = lease
        # Told by the parent: asked for here, it might be that of a worker already dead.
        self._parent = parent

    def run(self) -> None:
        """Beat three times a lease and watch the parent each second, until the process ends."""
        seconds = self._context.settings.lease_seconds
        beaten = tried = time.monotonic()
        while True:
            if os.getppid() != self._parent:
                self._hand_back()
            time.sleep(min(1.0, seconds / 6))
            if time.monotonic() - tried < seconds / 3:
                continue
            tried = time.monotonic()
            try:
                with self._context.db.transaction() as session:
                    leases.beat(session, lease=self._lease, seconds=seconds)
                beaten = time.monotonic()
            except LeaseLost:
                logger.info("job %s is no longer this trainer's", self._lease.job_id)
                os._exit(LOST)
            except Exception as problem:  # boundary: a database that is away for a while
                logger.warning("heartbeat failed: %s", problem)
                if time.monotonic() - beaten > seconds * 0.8:
                    # Another trainer may own the job any moment now.
                    os._exit(LOST)

    def _hand_back(self) -> None:
        """The worker is gone: let the next one take the job at once, and leave nothing running."""
        logger.warning("the worker is gone; job %s goes back to the queue", self._lease.job_id)
        try:
            with self._context.db.transaction() as session:
                leases.abandon(session, lease=self._lease, back_off=0.0, counted=False)
        finally:
            os._exit(LOST)


def main(job_id: str, token: int, parent: int) -> int:
    """Work on one claimed job and return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    machine.wait_briefly()
    machine.keep_memory()
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    context = Context.build(Settings())
    lease = Lease(job_id, token)
    Heartbeat(context, lease, parent).start()
    try:
        with context.db.reading() as session:
            if not leases.holds(session, lease=lease):
                raise LeaseLost(job_id)
            status = session.get_one(Job, job_id).status
        work(context, lease, status, stop)
    except LeaseLost:
        logger.info("job %s is no longer this trainer's", job_id)
        return LOST
    except Exception as problem:  # boundary: the attempt failed; the next one may do better
        logger.exception("job %s stopped", job_id)
        report(context, lease, problem)
        return CRASHED
    return DONE


def work(context: Context, lease: Lease, status: str, stop: threading.Event) -> None:
    """Validate or train, as the job's status asks. torch is loaded for training only."""
    if status == "validating_files":
        from worker.validation import validate

        validate(context, lease)
    else:
        from worker.runner import Run

        Run(context, lease, stop.is_set).train()


def report(context: Context, lease: Lease, problem: Exception) -> None:
    """Tell the job's reader that an attempt failed, and how."""
    try:
        with context.db.transaction() as session:
            if leases.holds(session, lease=lease):
                attempts = session.get_one(Job, lease.job_id).attempts
                message = (
                    f"The trainer stopped with {type(problem).__name__}: {problem} "
                    f"(attempt {attempts} of {context.settings.max_attempts})"
                )
                events.append(session, job_id=lease.job_id, level="warn", message=message[:4000])
    except Exception:  # boundary: the log has the first problem already
        logger.exception("the failure of job %s could not be reported", lease.job_id)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
