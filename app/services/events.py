"""A job's events: the log, the chart's data and the live stream, all from the same rows.

`seq` is set inside the job's own UPDATE, so its order is commit order on every database.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.core import clock
from app.core.ids import new_id
from app.core.page import Page, read_page
from app.core.tables import Event, Job


def append(
    session: Session,
    *,
    job_id: str,
    message: str,
    type: str = "message",
    level: str = "info",
    data: dict[str, Any] | None = None,
) -> Event:
    """Add an event to a job. `level` is info, warn or error; `type` is message or metrics."""
    seq = session.execute(
        update(Job).where(Job.id == job_id).values(event_seq=Job.event_seq + 1).returning(Job.event_seq),
        execution_options={"synchronize_session": False},
    ).scalar_one()
    event = Event(
        id=new_id("event"),
        job_id=job_id,
        seq=seq,
        type=type,
        level=level,
        message=message,
        data=data or {},
        created_at=clock.now(),
    )
    session.add(event)
    session.flush()
    return event


def list_events(session: Session, *, job_id: str, limit: int, after: str | None = None) -> Page[Event]:
    """Return a page of a job's events, newest first."""
    return read_page(
        session,
        select(Event).where(Event.job_id == job_id),
        keys=[Event.seq],
        id_column=Event.id,
        limit=limit,
        after=after,
    )


def events_since(session: Session, *, job_id: str, seq: int, limit: int = 500) -> Sequence[Event]:
    """Return a job's events after `seq`, oldest first."""
    return session.scalars(
        select(Event).where(Event.job_id == job_id, Event.seq > seq).order_by(Event.seq).limit(limit)
    ).all()


def metrics_events(session: Session, *, job_id: str) -> Sequence[Event]:
    """Return every metrics event of a job, oldest first: the whole of its charts."""
    return session.scalars(
        select(Event).where(Event.job_id == job_id, Event.type == "metrics").order_by(Event.seq)
    ).all()
