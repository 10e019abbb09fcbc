"""The result file of a job: `step_metrics.csv`, written once the job has ended, however it ended.

A job that succeeds gets it from the runner, in the transaction of its success; one that failed or was
cancelled after a step gets it from the supervisor's sweep.

Source: `result_files` of OpenAI's job object.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.tables import File, Job, Step
from app.services import files
from app.services.files import Stored
from worker.metrics import result_csv


def name_file(session: Session, *, stored: Stored) -> File:
    """Insert the row of a result file whose bytes are stored."""
    return files.name_result(session, stored=stored, filename="step_metrics.csv", purpose="fine-tune-results")


def table(session: Session, *, job_id: str) -> bytes:
    """Return a job's CSV, one line a committed step."""
    return result_csv(
        session.scalars(select(Step.metrics).where(Step.job_id == job_id).order_by(Step.step)).all()
    )


def write_missing(context: Context) -> None:
    """Give the jobs that failed or were cancelled after a step their result file."""
    with context.db.reading() as session:
        ended = session.execute(
            select(Job.id, Job.project_id)
            .where(Job.status.in_(("failed", "cancelled")), Job.step > 0, Job.result_file.is_(None))
            .limit(20)
        ).all()
        tables = {job_id: (project_id, table(session, job_id=job_id)) for job_id, project_id in ended}
    for job_id, (project_id, text) in tables.items():
        stored = files.store_upload(context.storage, project_id=project_id, chunks=[text])
        with files.kept_if_named(context.storage, stored), context.db.transaction() as session:
            session.get_one(Job, job_id).result_file = name_file(session, stored=stored).id
