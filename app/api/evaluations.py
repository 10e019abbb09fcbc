"""Routes of a job's evaluation, an extension: base and tuned model on the same items."""

from typing import Any

from fastapi import APIRouter

from app.api.deps import ByCaller, InSession
from app.api.schemas.lists import Listed, listed
from app.core.errors import NotFound
from app.core.page import Page
from app.services import evaluations, jobs

router = APIRouter(prefix="/fine_tuning/jobs/{job_id}/evaluation", tags=["extensions"])


@router.get("")
def retrieve_evaluation(session: InSession, caller: ByCaller, job_id: str) -> dict[str, Any]:
    """Return the comparison of base and tuned model."""
    job = jobs.get_job(session, project_id=caller.project_id, job_id=job_id)
    found = evaluations.evaluation(session, job=job)
    if found is None:
        raise NotFound(
            f"Job {job.id} has no evaluation yet: base and tuned model were not both measured.",
            code="evaluation_not_found",
        )
    return found


@router.get("/items")
def list_items(session: InSession, caller: ByCaller, job_id: str) -> Listed[dict[str, Any]]:
    """List each item's two scores, in the order of the file."""
    job = jobs.get_job(session, project_id=caller.project_id, job_id=job_id)
    return listed(Page(evaluations.items(session, job=job), has_more=False), dict)
