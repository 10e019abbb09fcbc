"""Fine-tuning jobs: create, find, cancel, pause, resume. What a worker does to a job is in `leases.py`.

`create_job` takes the wire's JSON as it was sent, whichever face it came through, so there is one
validator and one set of messages.

Source: https://platform.openai.com/docs/api-reference/fine-tuning/create
"""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.core import clock, queue
from app.core.db import database_now
from app.core.errors import InvalidRequest, NotFound
from app.core.ids import new_id
from app.core.page import Page, labelled, read_page
from app.core.refusals import invalid
from app.core.settings import Settings
from app.core.status import MOVES, TERMINAL, origins
from app.core.tables import Job
from app.graders.spec import parse_grader
from app.services import events, files, graders, inference, models, saved_graders, webhooks
from app.services.job_request import parse_job_request

_GRADER = "method.reinforcement.grader"


def create_job(session: Session, *, settings: Settings, project_id: str, body: Mapping[str, Any]) -> Job:
    """Check a request and insert its job, which a worker will then validate and run.

    `check_sources` comes first, outside the transaction.
    Raises: InvalidRequest naming the parameter. Errors inside the files come later, as a failed job.
    """
    body, saved = _with_saved_graders(session, project_id, body)
    request = parse_job_request(body)
    grader = parse_grader(request.method["reinforcement"]["grader"])
    served = inference.judges(session, settings=settings, project_id=project_id, grader=grader)
    graders.check_means(grader, settings=settings, param=_GRADER, sources=False, served=served)
    model, aliased = models.resolve_start(
        session, settings=settings, project_id=project_id, name=request.model
    )
    for key, file_id in request.files.items():
        if file_id is not None:
            _check_file(session, project_id, key, file_id)
    job = Job(
        id=new_id("job"),
        project_id=project_id,
        status="validating_files",
        model=model.id,
        suffix=request.suffix,
        seed=request.seed,
        method=request.method,
        saved_graders=saved or None,
        labels=request.labels,
        created_at=clock.now(),
        **request.files,
    )
    session.add(job)
    session.flush()
    if aliased:
        message = f"The model '{request.model}' is an alias here: this job tunes '{model.id}' in its place."
        events.append(session, job_id=job.id, level="warn", message=message)
    for param, version in saved.items():
        message = f"{param} is version {version['version']} of {version['id']} (sha256 {version['sha256']})."
        events.append(session, job_id=job.id, message=message)
    for warning in request.warnings:
        events.append(session, job_id=job.id, level="warn", message=warning)
    events.append(session, job_id=job.id, message=f"Created fine-tuning job: {job.id}")
    queue.nudge(session, queue.WAKE)
    session.refresh(job)
    return job


def check_sources(*, settings: Settings, body: Mapping[str, Any]) -> None:
    """Refuse Python graders that are no programs. It starts a sandbox, so no transaction may be open yet.

    Raises: InvalidRequest naming the source and the line.
    """
    content: Any = body
    for key in _GRADER.split("."):
        content = content.get(key) if isinstance(content, Mapping) else None
    graders.check_sources(content, settings=settings, param=_GRADER)


def get_job(session: Session, *, project_id: str, job_id: str) -> Job:
    """Return one job. Raises: NotFound `fine_tune_not_found`."""
    job = session.get(Job, job_id)
    if job is None or job.project_id != project_id:
        raise NotFound(
            f"Could not find fine tune: {job_id}", param="fine_tune_id", code="fine_tune_not_found"
        )
    return job


def list_jobs(
    session: Session,
    *,
    project_id: str,
    limit: int,
    after: str | None = None,
    labels: Mapping[str, str] | None = None,
    without_labels: bool = False,
    statuses: Collection[str] | None = None,
) -> Page[Job]:
    """Return a page of a project's jobs, newest first; `labels` is the wire's metadata filter."""
    everything = select(Job).where(Job.project_id == project_id)
    query = everything if statuses is None else everything.where(Job.status.in_(statuses))
    query = labelled(session, query, Job.labels, labels=labels or {}, without=without_labels)
    return read_page(
        session,
        query,
        keys=[Job.created_at, Job.id],
        id_column=Job.id,
        limit=limit,
        after=after,
        among=everything,
    )


def queue_position(session: Session, *, job: Job) -> int:
    """Return how many queued jobs a worker will take before this one."""
    earlier = select(func.count()).where(Job.status == "queued", Job.created_at < job.created_at)
    return session.scalars(earlier).one()


def cancel_job(session: Session, *, project_id: str, job_id: str) -> Job:
    """Cancel a job that has not ended; its trainer is fenced from this commit on."""
    job = _move(
        session,
        "cancel",
        get_job(session, project_id=project_id, job_id=job_id),
        lease_owner=None,
        lease_expires_at=None,
        lease_token=Job.lease_token + 1,
        finished_at=database_now(),
        estimated_finish=None,
    )
    events.append(session, job_id=job_id, message="Fine-tuning job cancelled")
    webhooks.emit(session, project_id=project_id, type="fine_tuning.job.cancelled", object_id=job_id)
    queue.nudge(session, queue.WAKE)
    session.refresh(job)
    return job


def pause_job(session: Session, *, project_id: str, job_id: str) -> Job:
    """Pause a job: a queued one at once, a running one after its step, with a usable checkpoint."""
    job = _move(session, "pause", get_job(session, project_id=project_id, job_id=job_id))
    message = "Fine-tuning job paused" if job.status == "paused" else "Pausing after the current step"
    events.append(session, job_id=job_id, message=message)
    queue.nudge(session, queue.WAKE)
    session.refresh(job)
    return job


def resume_job(session: Session, *, project_id: str, job_id: str) -> Job:
    """Put a paused job back in the queue; it goes on from its last checkpoint."""
    job = get_job(session, project_id=project_id, job_id=job_id)
    job = _move(session, "resume", job, attempts=0, not_before=0.0)
    events.append(session, job_id=job_id, message="Fine-tuning job resumed")
    queue.nudge(session, queue.WAKE)
    session.refresh(job)
    return job


def _move(session: Session, move: str, job: Job, **values: Any) -> Job:
    """Make one legal status change in one statement. Raises: InvalidRequest `invalid_job_state`."""
    for start in origins(move):
        moved = session.execute(
            update(Job)
            .where(Job.id == job.id, Job.status == start)
            .values(status=MOVES[move][start], **values)
            .returning(Job.id),
            execution_options={"synchronize_session": False},
        ).first()
        if moved is not None:
            session.refresh(job)
            return job
    session.refresh(job)
    # Never 409: the SDKs would retry it.
    already = " already" if job.status in TERMINAL else ""
    raise InvalidRequest(
        f'Cannot {move} job {job.id} because its status is{already} "{job.status}".', code="invalid_job_state"
    )


def _with_saved_graders(
    session: Session, project_id: str, body: Mapping[str, Any]
) -> tuple[Mapping[str, Any], dict[str, dict[str, Any]]]:
    """Return the body with saved graders filled in, and their versions. Anything malformed is left alone."""
    method = body.get("method")
    inner = method.get("reinforcement") if isinstance(method, Mapping) else None
    if not isinstance(method, Mapping) or not isinstance(inner, Mapping):
        return body, {}
    found = saved_graders.resolve(session, project_id=project_id, grader=inner.get("grader"), param=_GRADER)
    if not found.saved:
        return body, {}
    return {
        **body,
        "method": {**method, "reinforcement": {**inner, "grader": found.grader}},
    }, found.saved


def _check_file(session: Session, project_id: str, key: str, file_id: str) -> None:
    try:
        file = files.get_file(session, project_id=project_id, file_id=file_id)
    except NotFound:
        raise invalid(f"there is no file '{file_id}' in this project", key) from None
    if file.purpose != "fine-tune":
        raise invalid(f"the file {file_id} has purpose '{file.purpose}', but must have 'fine-tune'", key)
