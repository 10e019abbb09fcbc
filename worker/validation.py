"""Checks a job's files before it queues: every line, every field the grader reads, overlap between splits.

A fault ends the job with a message that names the line and the cure. Loads no model. Called by the trainer.

Source: OpenAI validates files when a job starts, not at upload; status `validating_files`.
"""

from app.core.context import Context
from app.core.errors import NotFound
from app.core.tables import Job
from app.graders.spec import Grader, parse_grader
from app.services import datasets, events, files, leases
from app.services.datasets import DatasetError, DatasetSummary, Role
from app.services.leases import Lease


def validate(context: Context, lease: Lease) -> None:
    """Check the files of the job and queue it, or fail it. Raises: LeaseLost."""
    with context.db.transaction() as session:
        leases.beat(session, lease=lease, seconds=context.settings.lease_seconds)
        job = session.get_one(Job, lease.job_id)
        events.append(session, job_id=job.id, message=_announcement(job))
    grader = parse_grader(job.method["reinforcement"]["grader"])
    roles: dict[Role, str | None] = {
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "test_file": job.test_file,
    }
    try:
        summaries = [
            _check(context, job, role, file_id, grader)
            for role, file_id in roles.items()
            if file_id is not None
        ]
    except DatasetError as problem:
        with context.db.transaction() as session:
            leases.fail(session, lease=lease, code=problem.code, param=problem.param, message=problem.message)
        return
    warnings = [warning for summary in summaries for warning in summary.warnings]
    warnings += [
        warning for later in summaries[1:] if (warning := _overlap_warning(summaries[0], later)) is not None
    ]
    with context.db.transaction() as session:
        for warning in warnings:
            events.append(session, job_id=job.id, level="warn", message=warning)
        leases.validated(session, lease=lease)


def _announcement(job: Job) -> str:
    text = f"Validating training file: {job.training_file}"
    if job.validation_file is not None:
        text += f" and validation file: {job.validation_file}"
    if job.test_file is not None:
        text += f" and test file: {job.test_file}"
    return text


def _check(context: Context, job: Job, role: Role, file_id: str, grader: Grader) -> DatasetSummary:
    with context.db.reading() as session:
        try:
            file = files.get_file(session, project_id=job.project_id, file_id=file_id)
        except NotFound as problem:
            message = f"The {role.replace('_', ' ')} {file_id} was deleted before it could be checked."
            raise DatasetError(f"invalid_{role}", role, message) from problem
    path = context.storage.path(files.file_uri(file))
    return datasets.check_dataset(path, role=role, grader=grader, max_rows=datasets.ROW_LIMITS[role])


def _overlap_warning(training: DatasetSummary, other: DatasetSummary) -> str | None:
    shared = datasets.overlap(training, other)
    if not shared:
        return None
    return (
        f"{shared} of {other.rows} examples of the {other.role.replace('_', ' ')} ask what the training "
        "file asks too: their scores say less about new questions."
    )
