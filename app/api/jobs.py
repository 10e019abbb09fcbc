"""Routes of fine-tuning jobs: create, list, retrieve, cancel, pause, resume."""

from fastapi import APIRouter

from app.api.deps import ByAttempt, ByCaller, InContext, InSession, JsonObject, Limit
from app.api.labels import ByLabels
from app.api.schemas.jobs import JobObject, job_object
from app.api.schemas.lists import Listed, listed
from app.services import acceptances, jobs

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"])


@router.post("")
def create_job(
    body: JsonObject, context: InContext, session: InSession, caller: ByCaller, attempt: ByAttempt
) -> JobObject:
    """Create a job; what its files hold is checked when it starts. Sent again, it makes no second one."""
    settings, body_sha256 = context.settings, acceptances.body_hash(body)
    jobs.check_sources(settings=settings, body=body)
    earlier = acceptances.accepted_before(session, attempt=attempt, noun="job", body_sha256=body_sha256)
    if earlier is not None:
        job = jobs.get_job(session, project_id=caller.project_id, job_id=earlier)
    else:
        job = jobs.create_job(session, settings=settings, project_id=caller.project_id, body=body)
        acceptances.accept(session, attempt=attempt, noun="job", body_sha256=body_sha256, object_id=job.id)
    return job_object(job, organization=settings.organization)


@router.get("")
def list_jobs(
    context: InContext,
    session: InSession,
    caller: ByCaller,
    wanted: ByLabels,
    limit: Limit = 20,
    after: str | None = None,
) -> Listed[JobObject]:
    """List the project's jobs, newest first."""
    page = jobs.list_jobs(
        session,
        project_id=caller.project_id,
        limit=limit,
        after=after,
        labels=wanted.labels,
        without_labels=wanted.without,
    )
    return listed(page, lambda job: job_object(job, organization=context.settings.organization))


@router.get("/{job_id}")
def retrieve_job(context: InContext, session: InSession, caller: ByCaller, job_id: str) -> JobObject:
    """Return one job."""
    job = jobs.get_job(session, project_id=caller.project_id, job_id=job_id)
    return job_object(job, organization=context.settings.organization)


@router.post("/{job_id}/cancel")
def cancel_job(context: InContext, session: InSession, caller: ByCaller, job_id: str) -> JobObject:
    """End a job that has not ended; a body is not looked at."""
    job = jobs.cancel_job(session, project_id=caller.project_id, job_id=job_id)
    return job_object(job, organization=context.settings.organization)


@router.post("/{job_id}/pause")
def pause_job(context: InContext, session: InSession, caller: ByCaller, job_id: str) -> JobObject:
    """Pause a job, keeping what it has learnt as a model."""
    job = jobs.pause_job(session, project_id=caller.project_id, job_id=job_id)
    return job_object(job, organization=context.settings.organization)


@router.post("/{job_id}/resume")
def resume_job(context: InContext, session: InSession, caller: ByCaller, job_id: str) -> JobObject:
    """Let a paused job go on."""
    job = jobs.resume_job(session, project_id=caller.project_id, job_id=job_id)
    return job_object(job, organization=context.settings.organization)
