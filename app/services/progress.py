"""What pages watch of many jobs at once: marks that tell a change, and validation curves.

Two small queries whatever the number of jobs. Called by the dashboard's list and its live stream.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.tables import Event, Job


@dataclass(frozen=True, slots=True)
class Mark:
    """Two equal marks mean that nothing a page shows of a job has changed between them."""

    seq: int
    status: str
    step: int
    estimated_finish: float | None


def marks(session: Session, *, job_ids: Collection[str]) -> dict[str, Mark]:
    """Return each job's mark."""
    rows = session.execute(
        select(Job.id, Job.event_seq, Job.status, Job.step, Job.estimated_finish).where(Job.id.in_(job_ids))
    ).all()
    return {row.id: Mark(row.event_seq, row.status, row.step, row.estimated_finish) for row in rows}


def valid_curves(session: Session, *, job_ids: Collection[str]) -> dict[str, list[tuple[int, float]]]:
    """Return each job's validation rewards as (step, mean) in order; a job without any is left out."""
    reward = Event.data["full_valid_mean_reward"].as_float()
    step = Event.data["step"].as_integer()
    rows = session.execute(
        select(Event.job_id, step, reward)
        .where(Event.job_id.in_(job_ids), Event.type == "metrics", reward.is_not(None))
        .order_by(Event.job_id, Event.seq)
    ).all()
    curves: dict[str, dict[int, float]] = {}
    for job_id, at, mean in rows:
        curves.setdefault(job_id, {})[at] = mean
    return {job_id: sorted(curve.items()) for job_id, curve in curves.items()}
