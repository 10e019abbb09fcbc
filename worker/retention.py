"""What may go: old training answers, old conversations, and bytes under `jobs/` that no row names.

A killed trainer leaves bytes it never got to name, an ended job its recovery checkpoints. Readers go by
the rows alone, so whatever no row names is nobody's. Called by the supervisor, once an hour.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core import clock
from app.core.context import Context
from app.core.status import TERMINAL
from app.core.tables import Checkpoint, Export, Job, Model, RolloutBatch
from app.graders.judgements import FOLDER as JUDGEMENTS
from app.graders.judgements import Judgements
from app.services import completions, exports, responses, rollouts, trial_records


def forget_old_texts(context: Context) -> None:
    """Drop training answers of jobs that ended, judges' replies and trials' records older than is set."""
    days = context.settings.rollout_retention_days
    if not days:
        return
    before = clock.now() - days * 86_400
    with context.db.transaction() as session:
        gone = rollouts.forget_old(session, before=before)
    for uri in gone:
        context.storage.remove(uri)
    # A judge's reply tells of the answer it judged.
    Judgements(context.settings.root / JUDGEMENTS).forget_old(before=before)
    trial_records.forget_old(context.storage, before=before)


def forget_old_conversations(context: Context) -> None:
    """Drop completions and responses that were stored longer ago than is set."""
    days = context.settings.completion_retention_days
    if not days:
        return
    before = clock.now() - days * 86_400
    with context.db.transaction() as session:
        completions.forget_old(session, before=before)
        responses.forget_old(session, before=before)


def remove_unnamed(context: Context, *, older_than: float) -> list[str]:
    """Remove what lies under `jobs/`, is named by no row, and is `older_than` seconds; return the URIs."""
    root = context.storage.root
    removed = []
    for job_folder in sorted((root / "jobs").glob("*")):
        with context.db.reading() as session:
            named = set(_named(session, job_folder.name))
        for path in _pieces(job_folder):
            uri = path.relative_to(root).as_posix()
            if uri not in named and time.time() - path.stat().st_mtime > older_than:
                context.storage.remove(uri)
                removed.append(uri)
    return removed


def _named(session: Session, job_id: str) -> Iterator[str]:
    job = session.get(Job, job_id)
    if job is not None and job.checkpoint_uri is not None and job.status not in TERMINAL:
        yield job.checkpoint_uri
    for column, owner in (
        (Checkpoint.uri, Checkpoint.job_id),
        (Model.uri, Model.job_id),
        (RolloutBatch.uri, RolloutBatch.job_id),
    ):
        yield from (uri for uri in session.scalars(select(column).where(owner == job_id)) if uri)
    of_job = select(Export.uri).join(Model, Model.id == Export.model_id).where(Model.job_id == job_id)
    yield from (uri for uri in session.scalars(of_job) if uri)
    yield from exports.building(session, job_id=job_id)


def _pieces(job_folder: Path) -> Iterator[Path]:
    """Yield what is written whole: `model.tok-1`, and each entry of the folders that hold several."""
    for path in job_folder.iterdir():
        if path.name in ("recovery", "checkpoints", "rollouts", "exports"):
            yield from path.iterdir()
        else:
            yield path
