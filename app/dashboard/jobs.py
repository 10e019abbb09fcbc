"""The jobs' pages: list with one job beside it, its tabs, its stream, and pause, resume, cancel."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from sqlalchemy.orm import Session

from app.core.errors import Unavailable
from app.core.tables import Job
from app.dashboard import job_view, render
from app.dashboard.job_contexts import JobsPage
from app.dashboard.live import Hub
from app.dashboard.visitor import Form, Parts, Reading, SignedIn, Visitor, Writing
from app.services import jobs, progress

router = APIRouter()
PAGE = 50
FILTERS = {
    "all": ("All", None),
    "running": ("Running", ("validating_files", "queued", "running", "pausing", "paused")),
    "successful": ("Successful", ("succeeded",)),
    "failed": ("Failed", ("failed", "cancelled")),
}
TABS = ("metrics", "events", "config")
JobId = Annotated[str, Path(max_length=64)]
Filter = Annotated[str, Query(max_length=20)]


@router.get("/")
def go_home(_visitor: SignedIn) -> Response:
    """Open the jobs, the first page there is."""
    return RedirectResponse("/finetune", status_code=303)


@router.get("/finetune")
def show_jobs(
    visitor: SignedIn, session: Reading, filter: Filter = "all", after: str | None = None
) -> Response:
    """Show the jobs, the newest one open."""
    return _page(session, visitor, filter, after, None, "metrics")


@router.get("/finetune/{job_id}")
def show_job(job_id: JobId, visitor: SignedIn, session: Reading, filter: Filter = "all") -> Response:
    """Show one job's metrics."""
    job = jobs.get_job(session, project_id=visitor.project_id, job_id=job_id)
    return _page(session, visitor, filter, None, job, "metrics")


@router.get("/finetune/{job_id}/events")
def show_events(job_id: JobId, visitor: SignedIn, session: Reading, after: str | None = None) -> Response:
    """Show one job's whole timeline."""
    job = jobs.get_job(session, project_id=visitor.project_id, job_id=job_id)
    return _page(session, visitor, "all", None, job, "events", events_after=after)


@router.get("/finetune/{job_id}/config")
def show_config(job_id: JobId, visitor: SignedIn, session: Reading) -> Response:
    """Show what a job was asked for and what it made of it."""
    job = jobs.get_job(session, project_id=visitor.project_id, job_id=job_id)
    return _page(session, visitor, "all", None, job, "config")


@router.get("/finetune/{job_id}/stream")
def stream_job(
    job_id: JobId,
    request: Request,
    visitor: SignedIn,
    context: Parts,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    tab: str = "metrics",
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> Response:
    """Stream what happens to a job, going on after the last event the browser saw."""
    with context.db.reading() as session:
        jobs.get_job(session, project_id=visitor.project_id, job_id=job_id)
    hub: Hub = request.app.state.hub
    if not hub.has_room(visitor.secret):
        raise Unavailable("Too many pages with live updates are open. Close some and reload this one.")
    if last_event_id is not None and last_event_id.isdecimal():
        after = int(last_event_id)
    return StreamingResponse(
        hub.stream(job_id=job_id, tab=tab if tab in TABS else "metrics", login=visitor.secret, after=after),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"},
    )


@router.post("/finetune/{job_id}/pause")
def pause(job_id: JobId, visitor: SignedIn, _form: Form, session: Writing) -> Response:
    """Pause a job after its step."""
    jobs.pause_job(session, project_id=visitor.project_id, job_id=job_id)
    return _back(job_id)


@router.post("/finetune/{job_id}/resume")
def resume(job_id: JobId, visitor: SignedIn, _form: Form, session: Writing) -> Response:
    """Put a paused job back in the queue."""
    jobs.resume_job(session, project_id=visitor.project_id, job_id=job_id)
    return _back(job_id)


@router.post("/finetune/{job_id}/cancel")
def cancel(job_id: JobId, visitor: SignedIn, _form: Form, session: Writing) -> Response:
    """End a job for good."""
    jobs.cancel_job(session, project_id=visitor.project_id, job_id=job_id)
    return _back(job_id)


def _back(job_id: str) -> Response:
    return RedirectResponse(f"/finetune/{job_id}", status_code=303)


def _page(
    session: Session,
    visitor: Visitor,
    wanted: str,
    after: str | None,
    job: Job | None,
    tab: str,
    *,
    events_after: str | None = None,
) -> Response:
    filter = wanted if wanted in FILTERS else "all"
    listed = jobs.list_jobs(
        session, project_id=visitor.project_id, limit=PAGE, after=after, statuses=FILTERS[filter][1]
    )
    shown = job or (listed.rows[0] if listed.rows else None)
    curves = progress.valid_curves(session, job_ids=[row.id for row in listed.rows])
    title = "Fine-tuning" if job is None else job_view.name_of(job)
    page = JobsPage(
        frame=visitor.frame(session, title=title, section="finetune"),
        rows=tuple(job_view.row(row, curves.get(row.id, ())) for row in listed.rows),
        filter=filter,
        filters=tuple((key, label) for key, (label, _) in FILTERS.items()),
        next_href=f"/finetune?filter={filter}&after={listed.rows[-1].id}" if listed.has_more else None,
        job=None if shown is None else job_view.view(session, shown, tab=tab, events_after=events_after),
        is_chosen=job is not None,
    )
    return render.page("jobs/jobs.html", page)
