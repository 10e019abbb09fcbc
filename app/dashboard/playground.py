"""The Playground: one or two models over one input, N answers each, graded when asked.

Works as a form that answers with the whole page; a script asks for each column as a stream instead. Both ask
the services that `POST /v1/chat/completions` asks. No transaction is open while a model answers.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from app.core.context import Context
from app.core.errors import AppError, NotFound
from app.dashboard import playground_view as view
from app.dashboard import render
from app.dashboard.contexts import Turn
from app.dashboard.playground_contexts import ColumnPage, ColumnView
from app.dashboard.playground_form import ROLES, Asked, Refused, curl, python
from app.dashboard.visitor import Form, Parts, SignedIn, Visitor, text
from app.graders.grade import grade
from app.graders.result import Grade
from app.services import completions, datasets, files, graders, inference, jobs, saved_graders
from app.services.chat_answer import Answer
from app.services.dataset_rows import BadLine

router = APIRouter()
Name = Annotated[str, Query(max_length=512)]
Row = Annotated[int, Query(ge=0, le=100_000)]


@router.get("/playground")
def show_playground(
    request: Request,
    visitor: SignedIn,
    context: Parts,
    model: Name = "",
    compare: Name = "",
    job: Name = "",
    row: Row = 0,
) -> Response:
    """Show the form, filled with a job's example when a job is named."""
    asked = Asked()
    asked.values |= {"model": model, "compare": compare}
    example = _take_example(context, visitor, asked, job, row) if job else ""
    with context.db.reading() as session:
        page = view.page(session, visitor, asked, base_url=_base_url(request), example=example)
    return render.page("playground/playground.html", page)


@router.post("/playground")
async def ask_models(request: Request, visitor: SignedIn, context: Parts, form: Form) -> Response:
    """Ask the models and show the page with their answers, or with another message added or removed."""
    asked = Asked.of(form)
    columns: list[ColumnView] = []
    errors: dict[str, str] = {}
    if not asked.arrange(text(form, "do")):
        try:
            asked.item()
            for name in asked.names:
                asked.request(name)
            work = [_whole(context, visitor, asked, place) for place in range(len(asked.names))]
            columns = list(await asyncio.gather(*work))
        except Refused as refused:
            errors[refused.field] = refused.message
    page = await to_thread.run_sync(_page, request, context, visitor, asked, columns, errors)
    return await to_thread.run_sync(
        lambda: render.page("playground/playground.html", page, status=422 if errors else 200)
    )


@router.post("/playground/stream")
async def stream_column(request: Request, visitor: SignedIn, context: Parts, form: Form) -> Response:
    """Stream one column: pieces of text as they come, and the finished column at the end."""
    asked = Asked.of(form)
    place = 1 if text(form, "column") == "1" and len(asked.names) > 1 else 0
    try:
        asked.item()
        asked.request(asked.names[place])
    except Refused as refused:
        return JSONResponse({"field": refused.field, "message": refused.message}, status_code=422)
    return StreamingResponse(
        _stream(context, visitor, asked, place, _base_url(request)),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"},
    )


def _page(
    request: Request,
    context: Context,
    visitor: Visitor,
    asked: Asked,
    columns: list[ColumnView],
    errors: dict[str, str],
) -> Any:
    with context.db.reading() as session:
        return view.page(session, visitor, asked, base_url=_base_url(request), columns=columns, errors=errors)


async def _whole(context: Context, visitor: Visitor, asked: Asked, place: int) -> ColumnView:
    """Return a column with what its model answered, or with why it did not."""
    name = asked.names[place]
    try:
        served = await to_thread.run_sync(
            lambda: inference.served(context, project_id=visitor.project_id, name=name)
        )
        said = await completions.answer(served, asked.request(name))
    except AppError as problem:
        return await to_thread.run_sync(_broken, context, visitor, place, name, problem)
    return await to_thread.run_sync(_column, context, visitor, asked, place, said)


async def _stream(
    context: Context, visitor: Visitor, asked: Asked, place: int, base_url: str
) -> AsyncIterator[str]:
    name = asked.names[place]
    if not place:
        body = asked.body(name)
        yield _event({"python": python(body, base_url), "curl": curl(body, base_url)})
    try:
        served = await to_thread.run_sync(
            lambda: inference.served(context, project_id=visitor.project_id, name=name)
        )
        made = Answer(served)
        pieces: AsyncGenerator[Mapping[str, Any]] = completions.pieces(asked.request(name, stream=True), made)
        # Closed whatever happens: a visitor who leaves ends the engine's work.
        async with aclosing(pieces):
            async for piece in pieces:
                for choice in piece["choices"]:
                    if words := choice["delta"].get("content"):
                        yield _event({"sample": choice["index"], "text": words})
        if asked.is_graded:
            yield _event({"stage": "Grading"})
        column = await to_thread.run_sync(_column, context, visitor, asked, place, made.completion())
    except AppError as problem:
        column = await to_thread.run_sync(_broken, context, visitor, place, name, problem)
    yield _event({"html": await to_thread.run_sync(_rendered, context, visitor, asked, column)})


def _event(told: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n"


def _rendered(context: Context, visitor: Visitor, asked: Asked, column: ColumnView) -> str:
    with context.db.reading() as session:
        frame = visitor.frame(session, title="Playground", section="playground")
    page = ColumnPage(frame, column, asked.is_graded, view.address(asked))
    return render.render("playground/_column.html", page)


def _broken(context: Context, visitor: Visitor, place: int, name: str, problem: AppError) -> ColumnView:
    with context.db.reading() as session:
        return view.column(session, visitor, place, name, (), error=problem)


def _column(
    context: Context, visitor: Visitor, asked: Asked, place: int, said: Mapping[str, Any]
) -> ColumnView:
    grades = _grades(context, visitor, asked, view.texts_of(said)) if asked.is_graded else None
    samples = view.samples_of(said, grades)
    reading = view.reading_of(said, samples)
    with context.db.reading() as session:
        return view.column(session, visitor, place, asked.names[place], samples, reading=reading)


def _grades(context: Context, visitor: Visitor, asked: Asked, texts: list[str]) -> list[Grade]:
    """Grade the answers; a grader that can't be run here leaves each without a score, and says why."""
    wanted, project_id = asked.values["grade_with"], visitor.project_id
    try:
        with context.db.reading() as session:
            if wanted == "job":
                job = jobs.get_job(session, project_id=project_id, job_id=asked.values["job"])
                content = job.method["reinforcement"]["grader"]
            else:
                version = saved_graders.get_version(session, project_id=project_id, grader_id=wanted)
                content = version.content
        here = {"project_id": project_id, "param": "grade_with"}
        grader = graders.checked_here(context, content, **here, sources=False)
        is_json = asked.wants_json
        with graders.means_here(context, grader, project_id=project_id) as means:
            return [
                grade(grader, item=asked.item(), output_text=text, json_expected=is_json, means=means)
                for text in texts
            ]
    except AppError as problem:
        return [Grade(reward=None, message=problem.message) for _ in texts]


def _take_example(context: Context, visitor: Visitor, asked: Asked, job_id: str, row: int) -> str:
    """Fill the form with a job's example, one it was not trained on where there is one; say which it is."""
    with context.db.reading() as session:
        job = jobs.get_job(session, project_id=visitor.project_id, job_id=job_id)
        file_id = job.test_file or job.validation_file or job.training_file
        split = "test" if job.test_file else "validation" if job.validation_file else "training"
        try:
            file = files.get_file(session, project_id=visitor.project_id, file_id=file_id)
        except NotFound:
            file = None
    asked.values |= {"job": job.id, "grade_with": "job"}
    if job.method["reinforcement"].get("response_format"):
        schema = job.method["reinforcement"]["response_format"]
        asked.values["response_format"] = json.dumps(schema, indent=2, ensure_ascii=False)
    path = context.storage.path(files.file_uri(file)) if file is not None else None
    if path is None or not path.is_file():
        return f"The {split} file of the job is gone: write a message of your own."
    try:
        found = next((one for one in datasets.read_rows(path) if one.index == row), None)
    except BadLine as problem:
        return f"The {split} file has a line that can't be read: {problem}"
    if found is None:
        return f"The {split} file has no example {row + 1}."
    names = {"developer": "system"}
    turns = [Turn(names.get(one["role"], one["role"]), str(one["content"])) for one in found.messages]
    asked.turns = [turn for turn in turns if turn.role in ROLES] or [Turn("user", "")]
    asked.values["item"] = json.dumps(found.item, indent=2, ensure_ascii=False)
    return f"Example {row + 1} of the job's {split} file"


def _base_url(request: Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc}/v1"
