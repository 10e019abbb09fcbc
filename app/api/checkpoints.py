"""Route of a job's checkpoints."""

from fastapi import APIRouter

from app.api.deps import ByCaller, InSession, Limit
from app.api.schemas.checkpoints import CheckpointObject, checkpoint_object
from app.api.schemas.lists import ListedWithEnds, listed_with_ends
from app.services import checkpoints, jobs

router = APIRouter(prefix="/fine_tuning/jobs/{job_id}/checkpoints", tags=["fine-tuning"])


@router.get("")
def list_checkpoints(
    session: InSession, caller: ByCaller, job_id: str, limit: Limit = 10, after: str | None = None
) -> ListedWithEnds[CheckpointObject]:
    """List a job's kept checkpoints, newest first."""
    job = jobs.get_job(session, project_id=caller.project_id, job_id=job_id)
    page = checkpoints.list_checkpoints(session, job_id=job.id, limit=limit, after=after)
    return listed_with_ends(page, checkpoint_object)
