"""The state machine under arbitrary order: two workers, an impatient user, crashes, expired leases, zombies.

Every move runs the product's own SQL. Whatever the order, a terminal job never changes, steps are
committed once and in order, and only the current token writes.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import select, update

from app.core import migrate
from app.core.db import Database
from app.core.errors import InvalidRequest
from app.core.settings import Settings
from app.core.status import TERMINAL
from app.core.tables import Job, Step, Webhook
from app.services import jobs, leases
from app.services.leases import Lease, LeaseLost
from tests.factories import make_job, make_project

TOTAL = 2
WORKERS = st.sampled_from(("a", "b"))


class LeaseMachine(RuleBasedStateMachine):
    """One job, two workers that may each believe they own it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="tunesmith-machine-")
        own = Settings(data=Path(self.folder.name))
        migrate.upgrade(own)
        self.database = Database(own.database)
        with self.database.transaction() as session:
            self.job = make_job(session, make_project(session))
        self.held: dict[str, Lease] = {}
        self.last = self.row()

    def teardown(self) -> None:
        """Close the database before its folder goes."""
        self.database.dispose()
        self.folder.cleanup()

    def row(self) -> Job:
        """Read the job afresh."""
        with self.database.reading() as session:
            return session.get_one(Job, self.job.id)

    def attempt(self, worker: str, write: Callable[..., Any]) -> None:
        """Let a worker write under its lease; it must be refused exactly when the token is old."""
        lease = self.held[worker]
        before = self.row()
        try:
            with self.database.transaction() as session:
                write(session, lease=lease)
        except LeaseLost:
            after = self.row()
            assert (after.status, after.step, after.lease_token) == (
                before.status,
                before.step,
                before.lease_token,
            )
        else:
            assert lease.token == before.lease_token, "a stale token wrote"

    @rule(worker=WORKERS)
    def claim(self, worker: str) -> None:
        with self.database.transaction() as session:
            lease = leases.claim(session, owner=worker, seconds=60, max_attempts=3)
        if lease is not None:
            self.held[worker] = lease
            if self.row().status == "running":
                self.attempt(worker, self.begin)

    @staticmethod
    def begin(session: Any, *, lease: Lease) -> None:
        leases.begin(session, lease=lease, resolved={}, total_steps=TOTAL)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), move=st.sampled_from(("validated", "release", "park", "succeed", "fail", "beat")))
    def worker_moves(self, data: st.DataObject, move: str) -> None:
        worker = data.draw(st.sampled_from(sorted(self.held)))
        named: dict[str, Any] = {
            "park": {"message": "parked"},
            "succeed": {"model_id": "m", "result_file": "f"},
            "fail": {"code": "c", "message": "m"},
            "beat": {"seconds": 60},
        }.get(move, {})
        write = getattr(leases, move)
        self.attempt(worker, lambda session, lease: write(session, lease=lease, **named))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), step=st.integers(1, TOTAL + 1))
    def commit(self, data: st.DataObject, step: int) -> None:
        worker = data.draw(st.sampled_from(sorted(self.held)))
        self.attempt(
            worker,
            lambda session, lease: leases.commit_step(
                session,
                lease=lease,
                step=step,
                lease_seconds=60,
                metrics={},
                message="",
                checkpoint=("u", "h"),
                training_seconds=0,
                remaining_seconds=None,
            ),
        )

    @rule()
    def lease_expires(self) -> None:
        with self.database.transaction() as session:
            session.execute(update(Job).where(Job.lease_owner.is_not(None)).values(lease_expires_at=1.0))

    @rule()
    def sweep(self) -> None:
        with self.database.transaction() as session:
            leases.sweep(session, max_attempts=3)

    @rule(action=st.sampled_from((jobs.cancel_job, jobs.pause_job, jobs.resume_job)))
    def user_acts(self, action: Any) -> None:
        try:
            with self.database.transaction() as session:
                action(session, project_id=self.job.project_id, job_id=self.job.id)
        except InvalidRequest as refusal:
            assert refusal.code == "invalid_job_state"

    @invariant()
    def holds(self) -> None:
        row = self.row()
        with self.database.reading() as session:
            steps = session.scalars(select(Step.step).order_by(Step.step)).all()
            webhooks = session.scalars(select(Webhook.type)).all()
        if self.last.status in TERMINAL:
            assert (row.status, row.step, row.finished_at) == (
                self.last.status,
                self.last.step,
                self.last.finished_at,
            )
        assert list(steps) == list(range(1, row.step + 1))
        assert row.step >= self.last.step
        assert row.lease_token >= self.last.lease_token
        assert webhooks == ([f"fine_tuning.job.{row.status}"] if row.status in TERMINAL else [])
        if row.status == "succeeded":
            assert row.step == TOTAL
        self.last = row


LeaseMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestLeaseMachine = LeaseMachine.TestCase
