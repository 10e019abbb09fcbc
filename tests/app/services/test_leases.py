"""The lease: one owner at a time, exactly-once effects, and every job ends. Run on both databases."""

import pytest
from sqlalchemy import select, update

from app.core.db import Database
from app.core.status import MOVES, TERMINAL
from app.core.tables import Event, Job, Step, Webhook
from app.services import jobs, leases
from app.services.leases import Lease, LeaseLost
from tests.factories import make_job, make_project


def start(database: Database, **values: object) -> Job:
    """Insert a project with one job."""
    with database.transaction() as session:
        return make_job(session, make_project(session), **values)


def take(database: Database, owner: str = "a", seconds: float = 30.0) -> Lease | None:
    """Claim in a transaction of its own, as a supervisor does."""
    with database.transaction() as session:
        return leases.claim(session, owner=owner, seconds=seconds, max_attempts=3)


def row(database: Database, job: Job) -> Job:
    """Read the job afresh."""
    with database.reading() as session:
        return session.get_one(Job, job.id)


def commit(database: Database, lease: Lease, step: int) -> str:
    """Commit a step with the least there is to it."""
    with database.transaction() as session:
        return leases.commit_step(
            session,
            lease=lease,
            step=step,
            lease_seconds=30.0,
            metrics={"step": step},
            message=f"Step {step}",
            checkpoint=("uri", "0" * 64) if step else None,
            training_seconds=1.0,
            remaining_seconds=10.0,
        )


def expire(database: Database, job: Job) -> None:
    """Let the lease run out."""
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == job.id).values(lease_expires_at=1.0))


def running(database: Database, total_steps: int = 2) -> tuple[Job, Lease]:
    """Return a job that has begun to train, and its lease."""
    job = start(database, status="queued")
    lease = take(database)
    assert lease is not None
    with database.transaction() as session:
        leases.begin(session, lease=lease, resolved={"batch_size": 8}, total_steps=total_steps)
    return job, lease


def test_a_whole_life(database: Database) -> None:
    """Validated, queued, trained and ended, with one event for each and one webhook."""
    job = start(database)
    first = take(database)
    assert first is not None
    with database.transaction() as session:
        leases.validated(session, lease=first)
    assert row(database, job).status == "queued"
    second = take(database)
    assert second is not None
    assert second.token > first.token
    with database.transaction() as session:
        leases.begin(session, lease=second, resolved={}, total_steps=1)
    commit(database, second, 0)
    commit(database, second, 1)
    with database.transaction() as session:
        leases.succeed(session, lease=second, model_id="ft:tiny:o::abc", result_file="file-x")
    ended = row(database, job)
    assert (ended.status, ended.step, ended.fine_tuned_model) == ("succeeded", 1, "ft:tiny:o::abc")
    assert (ended.lease_owner, ended.finished_at is not None) == (None, True)
    with database.reading() as session:
        messages = session.scalars(select(Event.message).order_by(Event.seq)).all()
        assert session.scalars(select(Event.seq).order_by(Event.seq)).all() == list(range(1, 7))
        assert session.scalars(select(Webhook.type)).all() == ["fine_tuning.job.succeeded"]
    assert messages == [
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Step 0",
        "Step 1",
        "New fine-tuned model created: ft:tiny:o::abc",
        "The job has successfully completed",
    ]


def test_one_owner_at_a_time(database: Database) -> None:
    """A held job is not claimed; an expired one is, and the old owner can write nothing more."""
    job, old = running(database)
    assert take(database, "b") is None
    expire(database, job)
    new = take(database, "b")
    assert new is not None
    assert new.token == old.token + 1
    for write in (
        lambda: commit(database, old, 1),
        lambda: _in(database, lambda s: leases.beat(s, lease=old, seconds=30)),
        lambda: _in(database, lambda s: leases.release(s, lease=old)),
        lambda: _in(database, lambda s: leases.fail(s, lease=old, code="x", message="x")),
        lambda: _in(database, lambda s: leases.park(s, lease=old, message="x")),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert commit(database, new, 1) == "running"


def _in(database: Database, write: object) -> object:
    with database.transaction() as session:
        return write(session)  # type: ignore[operator]


def test_a_step_is_committed_once_and_in_order(database: Database) -> None:
    """Neither a repeated nor a skipped step gets through, and neither leaves an event."""
    job, lease = running(database)
    commit(database, lease, 1)
    for step in (1, 3):
        with pytest.raises(LeaseLost):
            commit(database, lease, step)
    with database.reading() as session:
        assert session.scalars(select(Step.step)).all() == [1]
        assert session.scalars(select(Event.message).where(Event.type == "metrics")).all() == ["Step 1"]
    assert row(database, job).attempts == 0


def test_cancel_fences_the_trainer(database: Database) -> None:
    """From the cancelling commit on, the trainer's writes are refused; its webhook is written once."""
    job, lease = running(database)
    with database.transaction() as session:
        cancelled = jobs.cancel_job(session, project_id=job.project_id, job_id=job.id)
    assert cancelled.status == "cancelled"
    with pytest.raises(LeaseLost):
        commit(database, lease, 1)
    with database.reading() as session:
        assert not leases.holds(session, lease=lease)
        assert session.scalars(select(Webhook.type)).all() == ["fine_tuning.job.cancelled"]


def test_pause_waits_for_the_step(database: Database) -> None:
    """A running job pauses after its step; resumed, it is claimed again and goes on."""
    job, lease = running(database)
    with database.transaction() as session:
        assert jobs.pause_job(session, project_id=job.project_id, job_id=job.id).status == "pausing"
    assert take(database, "b") is None
    assert commit(database, lease, 1) == "pausing"
    with database.transaction() as session:
        leases.park(session, lease=lease, message="paused")
    assert row(database, job).status == "paused"
    with database.transaction() as session:
        assert jobs.resume_job(session, project_id=job.project_id, job_id=job.id).status == "queued"
    assert take(database) is not None


def test_sweep_ends_what_nobody_will(database: Database) -> None:
    """A job out of attempts fails with its webhook; one whose trainer died while pausing is paused."""
    job, _ = running(database)
    for _attempt in range(2):
        expire(database, job)
        assert take(database) is not None
    expire(database, job)
    assert take(database) is None
    other, _ = running(database)
    with database.transaction() as session:
        jobs.pause_job(session, project_id=other.project_id, job_id=other.id)
    expire(database, other)
    with database.transaction() as session:
        assert set(leases.sweep(session, max_attempts=3)) == {job.id, other.id}
    failed = row(database, job)
    assert (failed.status, failed.error_code) == ("failed", "too_many_attempts")
    assert row(database, other).status == "paused"
    with database.reading() as session:
        assert session.scalars(select(Webhook.type)).all() == ["fine_tuning.job.failed"]


def test_an_abandoned_job_is_claimed_at_once_but_counted(database: Database) -> None:
    """A dead trainer's job needs no waiting for its lease; its attempt stays counted."""
    job, lease = running(database)
    with database.transaction() as session:
        leases.abandon(session, lease=lease, back_off=0.0)
    again = take(database, "b")
    assert again is not None
    assert row(database, job).attempts == 2
    with database.transaction() as session:
        leases.abandon(session, lease=again, back_off=60.0)
    assert take(database, "c") is None


def test_success_needs_the_last_step(database: Database) -> None:
    """A job can't succeed before its last step is committed."""
    _, lease = running(database, total_steps=2)
    commit(database, lease, 1)
    with pytest.raises(LeaseLost):
        _in(database, lambda s: leases.succeed(s, lease=lease, model_id="m", result_file="f"))


def test_the_table_of_moves_is_closed() -> None:
    """No move leaves a terminal status, and every other status can end."""
    for starts in MOVES.values():
        assert not TERMINAL & starts.keys()
    reached = {"validating_files"}
    for _ in range(len(MOVES)):
        reached |= {end for starts in MOVES.values() for start, end in starts.items() if start in reached}
    assert reached >= TERMINAL | {"paused", "pausing", "running", "queued"}
