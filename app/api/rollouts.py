"""Route of a job's rollouts, an extension: every graded answer, with its text."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from app.api.deps import ByCaller, InContext, InSession, Limit, Natural
from app.api.schemas.lists import Listed, listed
from app.services import jobs, rollouts

router = APIRouter(prefix="/fine_tuning/jobs/{job_id}/rollouts", tags=["extensions"])


@router.get("")
def list_rollouts(
    context: InContext,
    session: InSession,
    caller: ByCaller,
    job_id: str,
    step: Natural = None,
    split: Annotated[Literal["train", "valid", "test"] | None, Query()] = None,
    item_index: Natural = None,
    limit: Limit = 20,
    after: str | None = None,
) -> Listed[dict[str, Any]]:
    """List a job's rollouts in the order they were graded."""
    job = jobs.get_job(session, project_id=caller.project_id, job_id=job_id)
    page = rollouts.list_rollouts(
        session,
        storage=context.storage,
        job_id=job.id,
        step=step,
        split=split,
        item_index=item_index,
        limit=limit,
        after=after,
    )
    return listed(page, dict)
