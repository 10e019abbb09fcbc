"""The graders' pages: the library of saved ones, and the lab where one is written, tried and saved."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from fastapi.responses import RedirectResponse, Response

from app.core.context import Context
from app.core.errors import NotFound
from app.core.tables import GraderVersion, SavedGrader
from app.dashboard import grader_form, grader_lab, grader_page, grader_view, render
from app.dashboard.grader_contexts import LibraryPage, LibraryRow
from app.dashboard.grader_lab import Lab
from app.dashboard.visitor import Form, Parts, Reading, SignedIn, Visitor, Writing, sandbox_line, text
from app.services import saved_graders, trial_records
from app.services.saved_graders import Use

router = APIRouter()
PAGE = 50
_KEPT = ("file", "job", "right", "json", "fresh")
_KINDS = {"string_check": "String check", **grader_form.TYPES}


@router.get("/graders")
def show_library(visitor: SignedIn, session: Reading, context: Parts, after: str | None = None) -> Response:
    """Show the project's saved graders."""
    found = saved_graders.list_graders(session, project_id=visitor.project_id, limit=PAGE, after=after)
    used = saved_graders.uses(session, project_id=visitor.project_id)
    page = LibraryPage(
        frame=visitor.frame(session, title="Graders", section="graders"),
        rows=tuple(_row(context, visitor, saved, version, used) for saved, version in found.rows),
        next_href=f"/graders?after={found.rows[-1][0].id}" if found.has_more else None,
        sandbox=sandbox_line(session),
    )
    return render.page("graders/graders.html", page)


@router.get("/graders/new")
def show_new(
    visitor: SignedIn,
    context: Parts,
    kind: Annotated[str, Query(alias="type", max_length=32)] = "python",
    file: Annotated[str, Query(max_length=64)] = "",
    job: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Show the lab with a grader to begin with."""
    lab = grader_lab.fresh(_kind(kind), file_id=file, job_id=job)
    grader_lab.suit(context, visitor, lab)
    return _show(context, visitor, lab)


@router.post("/graders/new")
def work_on_new(visitor: SignedIn, form: Form, context: Parts) -> Response:
    """Validate, try or save a grader that has no name yet."""
    lab = grader_lab.fresh(_kind(text(form, "type")))
    return _work(context, visitor, lab, form)


@router.get("/graders/{grader_id}")
def show_grader(
    grader_id: str,
    visitor: SignedIn,
    context: Parts,
    v: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    against: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    file: Annotated[str, Query(max_length=64)] = "",
    job: Annotated[str, Query(max_length=64)] = "",
    right: Annotated[str, Query(max_length=2000)] = "",
    json: Annotated[str, Query(max_length=1)] = "",
    fresh: Annotated[str, Query(max_length=512)] = "",
) -> Response:
    """Show the lab with a saved grader, its latest version unless told."""
    lab = _opened(context, visitor, grader_id, v)
    lab.against = against
    lab.values |= {"file": file, "job": job, "right": right, "json": json, "fresh": fresh}
    return _show(context, visitor, lab)


@router.post("/graders/{grader_id}")
def work_on_saved(
    grader_id: str,
    visitor: SignedIn,
    form: Form,
    context: Parts,
    v: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
) -> Response:
    """Validate, try, or save as the next version."""
    lab = _opened(context, visitor, grader_id, v)
    lab.kind = _kind(text(form, "type"))
    return _work(context, visitor, lab, form)


@router.post("/graders/{grader_id}/delete")
def delete_grader(grader_id: str, visitor: SignedIn, _form: Form, session: Writing) -> Response:
    """Delete a saved grader with its versions."""
    saved_graders.delete_grader(session, project_id=visitor.project_id, grader_id=grader_id)
    return RedirectResponse("/graders", status_code=303)


def _work(context: Context, visitor: Visitor, lab: Lab, form: Form) -> Response:
    for key in (*grader_form.KEYS, *grader_lab.TRY_KEYS):
        lab.values[key] = grader_form.plain(text(form, key))
    saved = grader_lab.work(context, visitor, lab, text(form, "do") or "validate")
    if saved is not None:
        asked: dict[str, str | int] = {"v": saved.version}
        if saved.version > 1:
            asked["against"] = saved.version - 1
        # What it is tried on stays chosen.
        asked |= {key: lab.values[key] for key in _KEPT if lab.values[key]}
        return RedirectResponse(f"/graders/{saved.grader_id}?{urlencode(asked)}", status_code=303)
    return _show(context, visitor, lab)


def _opened(context: Context, visitor: Visitor, grader_id: str, version: int | None) -> Lab:
    with context.db.reading() as session:
        saved = saved_graders.get_grader(session, project_id=visitor.project_id, grader_id=grader_id)
        found = saved_graders.get_version(
            session, project_id=visitor.project_id, grader_id=grader_id, version=version
        )
        return grader_lab.opened(saved, found)


def _show(context: Context, visitor: Visitor, lab: Lab) -> Response:
    grader_page.sandbox_of(context.settings)  # its first asking is an attack: no session is open for that
    with context.db.reading() as session:
        page = grader_page.page_of(session, context, visitor, lab)
    status = 422 if lab.errors else 503 if lab.results.problem else 200
    return render.page("graders/lab.html", page, status=status)


def _kind(name: str) -> str:
    if name not in grader_form.TYPES:
        raise NotFound("There is no such type of grader.")
    return name


def _row(
    context: Context,
    visitor: Visitor,
    saved: SavedGrader,
    version: GraderVersion,
    used: dict[str, list[Use]],
) -> LibraryRow:
    record = trial_records.find(context.storage, project_id=visitor.project_id, content=version.content)
    return LibraryRow(
        id=saved.id,
        name=saved.name,
        kind=_KINDS.get(version.content["type"], version.content["type"]),
        version=version.version,
        tried=grader_view.record_chip(record),
        jobs=len(used.get(saved.id, [])),
        updated_at=saved.updated_at,
    )
