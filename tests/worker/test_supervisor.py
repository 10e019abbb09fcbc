"""The supervisor with real trainers: it starts, fences, stops and cleans up; no process outlives its job."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.core.context import Context
from app.core.tables import File, Job, Step
from app.services import heartbeats, jobs, leases
from tests.worker.conftest import MakeJob, rows
from worker import retention
from worker.supervisor import Supervisor, Trainer


@pytest.fixture
def supervisor(context: Context, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """A running supervisor whose trainers find this test's data."""
    monkeypatch.setenv("TUNESMITH_DATA", str(context.settings.data))
    monkeypatch.setenv("TUNESMITH_MODELS", str(context.settings.models))
    supervisor = Supervisor(context)
    supervisor.start()
    yield supervisor
    supervisor.stop()


def until(claim: Callable[[], bool], seconds: float = 90) -> None:
    """Wait for a claim to hold."""
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def read(context: Context, job: Job) -> Job:
    """Read the job afresh."""
    with context.db.reading() as session:
        return session.get_one(Job, job.id)


def steps(context: Context, job: Job) -> int:
    """Count the committed steps."""
    with context.db.reading() as session:
        return session.scalars(select(func.count()).where(Step.job_id == job.id)).one()


def test_stopping_hands_the_job_back_uncounted(context: Context, create: MakeJob) -> None:
    """After `stop()` no trainer lives, the job is free and uncounted, and another supervisor ends it."""
    job = create(train=rows(60), valid=rows(2))
    first = Supervisor(context)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_DATA", str(context.settings.data))
        patch.setenv("TUNESMITH_MODELS", str(context.settings.models))
        first.start()
        until(lambda: steps(context, job) >= 3)
        pids = [trainer.process.pid for trainer in first._trainers]
        first.stop()
        assert not first.is_alive()
        assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
        after = read(context, job)
        assert (after.status, after.lease_owner, after.attempts) == ("queued", None, 0)
        second = Supervisor(context)
        second.start()
        until(lambda: read(context, job).status == "succeeded")
        second.stop()
    assert steps(context, job) == 16


def test_a_supervisor_that_never_started_can_be_stopped(context: Context) -> None:
    """The worker may be told to stop before it began."""
    supervisor = Supervisor(context)
    supervisor.stop()
    assert not supervisor.is_alive()


def test_a_cancelled_job_loses_trainer_and_gains_its_csv(
    context: Context, create: MakeJob, supervisor: Supervisor
) -> None:
    """The trainer is gone soon, the steps so far are in the result file, recovery bytes may be collected."""
    job = create(train=rows(400), hyperparameters={"max_completion_tokens": 32})
    until(lambda: read(context, job).step >= 1)
    trainer: Trainer = supervisor._trainers[0]
    with context.db.transaction() as session:
        jobs.cancel_job(session, project_id=job.project_id, job_id=job.id)
    supervisor.wake()
    until(lambda: trainer.process.poll() is not None, 20)
    until(lambda: read(context, job).result_file is not None, 30)
    with context.db.reading() as session:
        file = session.get_one(File, read(context, job).result_file)
    assert (file.filename, file.purpose) == ("step_metrics.csv", "fine-tune-results")
    removed = retention.remove_unnamed(context, older_than=-1)
    assert [uri for uri in removed if "/recovery/" in uri]
    assert list((context.storage.root / "jobs" / job.id / "recovery").iterdir()) == []


def test_a_trainer_without_its_parent_leaves_at_once(context: Context, create: MakeJob) -> None:
    """The parent it was told of is not its parent: the job goes back, nothing is trained."""
    job = create(train=rows(400))
    with context.db.transaction() as session:
        lease = leases.claim(session, owner="gone", seconds=30, max_attempts=5)
    assert lease is not None
    environment = os.environ | {
        "TUNESMITH_DATA": str(context.settings.data),
        "TUNESMITH_MODELS": str(context.settings.models),
    }
    command = [sys.executable, "-m", "worker.trainer", job.id, str(lease.token), "1"]
    assert subprocess.run(command, env=environment, timeout=60).returncode == 3
    assert read(context, job).attempts == 0
    with context.db.transaction() as session:
        assert leases.claim(session, owner="next", seconds=30, max_attempts=5) is not None


def test_retention_keeps_what_rows_name(context: Context, create: MakeJob, supervisor: Supervisor) -> None:
    """After a job ended well, everything under its folder is named but for strays, which go."""
    job = create(valid=rows(2))
    # The recovery checkpoint goes after the commit, so the job's end alone is too early to look.
    until(lambda: read(context, job).status == "succeeded" and not supervisor._trainers)
    stray = context.storage.root / "jobs" / job.id / "checkpoints" / ".step.tmp"
    stray.mkdir()
    before = {path for path in (context.storage.root / "jobs" / job.id).rglob("*") if path.is_file()}
    assert retention.remove_unnamed(context, older_than=3600) == []
    assert retention.remove_unnamed(context, older_than=-1) == [
        stray.relative_to(context.storage.root).as_posix()
    ]
    assert before == {p for p in (context.storage.root / "jobs" / job.id).rglob("*") if p.is_file()}


def test_the_worker_says_which_sandbox_it_has(context: Context, supervisor: Supervisor) -> None:
    """Its heartbeat carries the level that withstood the self-test, for status and dashboard."""

    def told() -> str:
        with context.db.reading() as session:
            beats = heartbeats.list_heartbeats(session)
            return "".join(str(row.detail.get("sandbox")) for row in beats if row.part == "worker")

    until(lambda: told().startswith("level "), 60)
    assert "10 of 10 attacks held" in told()
