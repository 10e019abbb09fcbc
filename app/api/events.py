"""Route of a job's events."""

from fastapi import APIRouter

from app.api.deps import ByCaller, InSession, Limit
from app.api.schemas.events import EventObject, event_object
from app.api.schemas.lists import Listed, listed
from app.services import events, jobs

router = APIRouter(prefix="/fine_tuning/jobs/{job_id}/events", tags=["fine-tuning"])


@router.get("")
def list_events(
    session: InSession, caller: ByCaller, job_id: str, limit: Limit = 20, after: str | None = None
) -> Listed[EventObject]:
    """List a job's events, newest first."""
    job = jobs.get_job(session, project_id=caller.project_id, job_id=job_id)
    return listed(events.list_events(session, job_id=job.id, limit=limit, after=after), event_object)
