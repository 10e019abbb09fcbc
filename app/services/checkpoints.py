"""Kept checkpoints: the best three validation steps of a job, each a servable model.

Written by the runner in the step's transaction; read by api and dashboard.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.core import clock
from app.core.ids import new_id
from app.core.page import Page, read_page
from app.core.tables import Checkpoint, Job, Model
from app.services import models

KEPT = 3


def list_checkpoints(
    session: Session, *, job_id: str, limit: int, after: str | None = None
) -> Page[Checkpoint]:
    """Return a page of a job's checkpoints, newest first."""
    return read_page(
        session,
        select(Checkpoint).where(Checkpoint.job_id == job_id),
        keys=[Checkpoint.step_number],
        id_column=Checkpoint.id,
        limit=limit,
        after=after,
    )


def is_kept(session: Session, *, job_id: str, valid_reward_mean: float | None) -> bool:
    """Say whether a validation step with this reward is among the best three so far."""
    if valid_reward_mean is None:
        return False
    rows = session.scalars(
        select(Checkpoint.valid_reward_mean).where(
            Checkpoint.job_id == job_id, Checkpoint.valid_reward_mean.is_not(None)
        )
    ).all()
    return len(rows) < KEPT or valid_reward_mean >= min(_rank(row) for row in rows)


def at_step(session: Session, *, job_id: str, step: int) -> Checkpoint | None:
    """Return the checkpoint kept at a step, if there is one."""
    return session.scalars(
        select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step_number == step)
    ).one_or_none()


def keep(
    session: Session,
    *,
    job: Job,
    step: int,
    model_id: str,
    uri: str,
    metrics: Mapping[str, Any],
    valid_reward_mean: float | None,
) -> Sequence[str]:
    """Keep a checkpoint and return the URIs of those it pushed out, and of their exports: the rows are gone.

    Ties go to the later step: it has seen more.
    """
    row = Checkpoint(
        id=new_id("checkpoint"),
        job_id=job.id,
        step_number=step,
        model_id=model_id,
        uri=uri,
        metrics=dict(metrics),
        valid_reward_mean=valid_reward_mean,
        created_at=clock.now(),
    )
    session.add(row)
    session.flush()
    models.add_tuned(session, job=job, model_id=model_id, kind="checkpoint", uri=uri, details={"step": step})
    rows = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id)).all()
    # A pause's snapshot was not measured; it takes no part in the ranking and stays.
    measured = [row for row in rows if row.valid_reward_mean is not None]
    ranked = sorted(measured, key=lambda r: (_rank(r.valid_reward_mean), r.step_number), reverse=True)
    dropped = ranked[KEPT:]
    doomed = [loser.uri for loser in dropped]
    for loser in dropped:
        doomed += models.export_uris(session, model_id=loser.model_id)
        session.delete(loser)
        session.execute(delete(Model).where(Model.id == loser.model_id))
    session.flush()
    return doomed


def _rank(reward: float | None) -> float:
    return float("-inf") if reward is None else reward
