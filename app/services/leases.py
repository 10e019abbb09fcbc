"""What a worker does to a job: claim, beat, commit, park, end. Every write carries the fencing token.

Each move is one conditional UPDATE; no row returned means the job is no longer this worker's, and
nothing else in the transaction may stand. The claim is that a job runs at least once and takes effect
exactly once.

Source: reliability.md §1.4; fencing tokens as in Kleppmann, *How to do distributed locking* (2016).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, or_, select, update
from sqlalchemy.orm import Session

from app.core.db import database_now
from app.core.status import MOVES, origins
from app.core.tables import Job, Step
from app.graders.result import Tokens, added
from app.services import events, webhooks

_FREE: dict[str, Any] = {"lease_owner": None, "lease_expires_at": None}
_FENCE: dict[str, Any] = {"lease_token": Job.lease_token + 1}


class LeaseLost(Exception):
    """The job has another owner, was cancelled, or has ended: stop, and write nothing more."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a job: valid while the row holds this token."""

    job_id: str
    token: int


def claim(session: Session, *, owner: str, seconds: float, max_attempts: int) -> Lease | None:
    """Take the oldest job that waits or whose owner has died, or return None."""
    free = or_(Job.lease_owner.is_(None), Job.lease_expires_at < database_now())
    claimable = Job.status.in_(origins("claim"))
    oldest = (
        select(Job.id)
        .where(claimable, free, Job.not_before <= database_now(), Job.attempts < max_attempts)
        .order_by(Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    row = session.execute(
        update(Job)
        .where(Job.id == oldest, claimable, free)
        .values(
            status=_target("claim"),
            lease_owner=owner,
            lease_expires_at=database_now() + seconds,
            attempts=Job.attempts + 1,
            **_FENCE,
        )
        .returning(Job.id, Job.lease_token),
        execution_options={"synchronize_session": False},
    ).one_or_none()
    return None if row is None else Lease(row[0], row[1])


def beat(session: Session, *, lease: Lease, seconds: float) -> str:
    """Renew the lease and return the status, which is how a pause reaches the trainer. Raises: LeaseLost."""
    row = session.execute(
        update(Job)
        .where(Job.id == lease.job_id, Job.lease_token == lease.token, Job.lease_owner.is_not(None))
        .values(lease_expires_at=database_now() + seconds)
        .returning(Job.status),
        execution_options={"synchronize_session": False},
    ).one_or_none()
    if row is None:
        raise LeaseLost(lease.job_id)
    status: str = row[0]
    return status


def spend(session: Session, *, lease: Lease, tokens: Mapping[str, Tokens]) -> None:
    """Add what judges were paid for to the job's account, in the transaction of a move or a beat."""
    job = session.get_one(Job, lease.job_id, populate_existing=True)
    job.grader_tokens = added((job.grader_tokens, tokens))


def holds(session: Session, *, lease: Lease) -> bool:
    """Say whether the job is still this lease's."""
    row = session.execute(
        select(Job.lease_token).where(Job.id == lease.job_id, Job.lease_owner.is_not(None))
    ).one_or_none()
    return row is not None and row[0] == lease.token


def abandon(session: Session, *, lease: Lease, back_off: float, counted: bool = True) -> None:
    """Give up the lease of a trainer that is gone: free to claim after `back_off` seconds.

    The attempt stays `counted` unless the trainer was stopped on purpose.
    """
    uncounted = case((Job.attempts > 0, Job.attempts - 1), else_=0)
    session.execute(
        update(Job)
        .where(Job.id == lease.job_id, Job.lease_token == lease.token, Job.lease_owner.is_not(None))
        .values(
            lease_expires_at=database_now() - 1.0,
            not_before=database_now() + back_off,
            attempts=Job.attempts if counted else uncounted,
        ),
        execution_options={"synchronize_session": False},
    )


def validated(session: Session, *, lease: Lease) -> None:
    """Move a checked job to the queue."""
    _move(session, "validated", lease, attempts=0, **_FREE)
    events.append(session, job_id=lease.job_id, message="Files validated, moving job to queued state")


def begin(session: Session, *, lease: Lease, resolved: dict[str, Any], total_steps: int) -> None:
    """Record what every `auto` became; the first time, note the start."""
    row = _move(session, "commit", lease, resolved=resolved, total_steps=total_steps)
    if row.started_at is None:
        session.execute(
            update(Job).where(Job.id == lease.job_id).values(started_at=database_now()),
            execution_options={"synchronize_session": False},
        )
        events.append(session, job_id=lease.job_id, message="Fine-tuning job started")


def commit_step(
    session: Session,
    *,
    lease: Lease,
    step: int,
    lease_seconds: float,
    metrics: dict[str, Any],
    message: str,
    checkpoint: tuple[str, str] | None,
    training_seconds: float,
    remaining_seconds: float | None,
) -> str:
    """Commit one step with its metrics event; return the job's status, `running` or `pausing`.

    `checkpoint` is the (uri, sha256) of the durable directory to resume from. Step 0 is the base line:
    it moves no counter and has no checkpoint, and the step log keeps it from being written twice.

    Raises: LeaseLost.
    """
    values: dict[str, Any] = {
        "attempts": 0,
        "lease_expires_at": database_now() + lease_seconds,
        "training_seconds": Job.training_seconds + training_seconds,
        "estimated_finish": None if remaining_seconds is None else database_now() + remaining_seconds,
    }
    if checkpoint is not None:
        values |= {"checkpoint_uri": checkpoint[0], "checkpoint_sha256": checkpoint[1]}
    before = step - 1 if step else 0
    row = _move(session, "commit", lease, Job.step == before, step=step, **values)
    session.add(
        Step(job_id=lease.job_id, step=step, token=lease.token, metrics=metrics, created_at=row.created_at)
    )
    events.append(session, job_id=lease.job_id, type="metrics", message=message, data=metrics)
    return row.status


def release(session: Session, *, lease: Lease) -> None:
    """Hand a running job back to the queue, as on SIGTERM; the attempt does not count."""
    _move(session, "release", lease, attempts=0, **_FREE)


def park(
    session: Session,
    *,
    lease: Lease,
    message: str,
    level: str = "info",
    data: dict[str, Any] | None = None,
) -> None:
    """Pause the job after its checkpoint, because it was asked to or because the trainer must."""
    _move(session, "park", lease, estimated_finish=None, **_FREE, **_FENCE)
    events.append(session, job_id=lease.job_id, message=message, level=level, data=data)


def succeed(session: Session, *, lease: Lease, model_id: str, result_file: str) -> None:
    """End the job well, with its webhook. Raises: LeaseLost."""
    row = _move(
        session,
        "succeed",
        lease,
        Job.step == Job.total_steps,
        finished_at=database_now(),
        estimated_finish=None,
        fine_tuned_model=model_id,
        result_file=result_file,
        **_FREE,
        **_FENCE,
    )
    events.append(session, job_id=lease.job_id, message=f"New fine-tuned model created: {model_id}")
    events.append(session, job_id=lease.job_id, message="The job has successfully completed")
    webhooks.emit(
        session, project_id=row.project_id, type="fine_tuning.job.succeeded", object_id=lease.job_id
    )


def fail(
    session: Session,
    *,
    lease: Lease,
    code: str,
    message: str,
    param: str | None = None,
) -> None:
    """End the job badly, saying why, with its webhook. Raises: LeaseLost."""
    row = _move(
        session,
        "fail",
        lease,
        error_code=code,
        error_param=param,
        error_message=message,
        finished_at=database_now(),
        estimated_finish=None,
        **_FREE,
        **_FENCE,
    )
    _report_failure(session, row, message)


def sweep(session: Session, *, max_attempts: int) -> Sequence[str]:
    """End what nobody will: jobs out of attempts fail, jobs whose trainer died while pausing are paused.

    Returns the ids of the jobs it moved.
    """
    expired = Job.lease_expires_at < database_now()
    poisoned = session.execute(
        update(Job)
        .where(Job.status.in_(("validating_files", "running")), expired, Job.attempts >= max_attempts)
        .values(
            status="failed",
            error_code="too_many_attempts",
            error_message=(
                f"The trainer stopped {max_attempts} times without finishing a step. The job's events say "
                "how; `make logs` has the whole account. Checkpoints made before stay usable."
            ),
            finished_at=database_now(),
            estimated_finish=None,
            **_FREE,
            **_FENCE,
        )
        .returning(Job.id),
        execution_options={"synchronize_session": False},
    ).scalars()
    moved = list(poisoned)
    for job_id in moved:
        row = session.get_one(Job, job_id, populate_existing=True)
        _report_failure(session, row, row.error_message or "")
    parked = session.execute(
        update(Job)
        .where(Job.status == "pausing", expired)
        .values(status="paused", estimated_finish=None, **_FREE, **_FENCE)
        .returning(Job.id),
        execution_options={"synchronize_session": False},
    ).scalars()
    for job_id in list(parked):
        events.append(session, job_id=job_id, message="Fine-tuning job paused at its last checkpoint")
        moved.append(job_id)
    return moved


def _target(move: str) -> Any:
    """Return the SQL for where `move` leads from the row's own status."""
    return case(*[(Job.status == start, end) for start, end in MOVES[move].items()])


def _move(session: Session, move: str, lease: Lease, *conditions: Any, **values: Any) -> Job:
    moved = session.execute(
        update(Job)
        .where(
            Job.id == lease.job_id,
            Job.lease_token == lease.token,
            Job.lease_owner.is_not(None),
            Job.status.in_(origins(move)),
            *conditions,
        )
        .values(status=_target(move), **values)
        .returning(Job.id),
        execution_options={"synchronize_session": False},
    ).one_or_none()
    if moved is None:
        raise LeaseLost(lease.job_id)
    return session.get_one(Job, lease.job_id, populate_existing=True)


def _report_failure(session: Session, job: Job, message: str) -> None:
    events.append(session, job_id=job.id, level="error", message=message)
    webhooks.emit(session, project_id=job.project_id, type="fine_tuning.job.failed", object_id=job.id)
