"""Routes of graders: run and validate as OpenAI has them, saved graders and trials as extensions.

No transaction is open while something is graded.
"""

from typing import Any

from fastapi import APIRouter

from app.api.bodies import read_body
from app.api.deps import ByCaller, InContext, InSession, JsonObject, Limit
from app.api.schemas import graders as schemas
from app.api.schemas.lists import Listed, listed
from app.core.context import Context
from app.core.response_format import parse_response_format, schema_of
from app.graders.grade import grade
from app.graders.json_text import NotJson, read_json
from app.graders.spec import Grader, dump
from app.services import fresh_answers, graders, saved_graders, trial_records, trials

router = APIRouter(tags=["graders"])


@router.post("/fine_tuning/alpha/graders/run")
def run_grader(context: InContext, caller: ByCaller, document: JsonObject) -> schemas.RunResult:
    """Grade one answer; a grading that fails is a 200 with its flags set."""
    body = read_body(schemas.RunBody, document)
    grader = _parsed(context, caller.project_id, body.grader, sources=False)
    with graders.means_here(context, grader, project_id=caller.project_id) as means:
        done = grade(
            grader,
            item=body.item or {},
            output_text=body.model_sample,
            # Here an answer is JSON if it reads as JSON: there is no job to say so.
            json_expected=_is_json(body.model_sample),
            means=means,
        )
    return schemas.run_result(grader, done)


@router.post("/fine_tuning/alpha/graders/validate")
def validate_grader(context: InContext, caller: ByCaller, document: JsonObject) -> schemas.ValidatedGrader:
    """Return a grader in its normal form, or say what is wrong with it."""
    body = read_body(schemas.OnlyGrader, document)
    grader = _parsed(context, caller.project_id, body.grader)
    return schemas.ValidatedGrader(grader=dump(grader))


@router.post("/graders/trial")
def try_grader(context: InContext, caller: ByCaller, document: JsonObject) -> dict[str, Any]:
    """Run a grader on answers and probes and report what its rewards are like."""
    body = read_body(schemas.TrialBody, document)
    grader = _parsed(context, caller.project_id, body.grader, sources=False)
    answer_format = parse_response_format(body.response_format, param="response_format")
    asked = trials.Asked(
        file_id=body.file,
        items=body.items,
        answers=[(answer.item_index, answer.output_text) for answer in body.answers],
        job=None if body.job is None else trials.JobAnswers(body.job.id, body.job.step, body.job.split),
        reference=body.reference,
        json_expected=schema_of(answer_format) is not None,
        probes=body.probes,
    )
    if body.fresh is not None:
        fresh = fresh_answers.Fresh(body.fresh.model, body.fresh.prompts, body.fresh.samples)
        asked = fresh_answers.drawn(
            context, project_id=caller.project_id, asked=asked, fresh=fresh, response_format=answer_format
        )
    with context.db.reading() as session:
        trial = trials.gather(session, storage=context.storage, project_id=caller.project_id, asked=asked)
    concurrency = context.settings.grader_concurrency
    with graders.means_here(context, grader, project_id=caller.project_id, concurrency=concurrency) as means:
        report = trials.run(grader, trial, means)
    trial_records.keep(context.storage, project_id=caller.project_id, grader=grader, report=report)
    return {"grader": dump(grader), **report}


@router.post("/graders")
def create_grader(context: InContext, caller: ByCaller, document: JsonObject) -> schemas.SavedGraderObject:
    """Save a grader under a name."""
    body = read_body(schemas.NewGrader, document)
    grader = _parsed(context, caller.project_id, body.grader)
    with context.db.transaction() as session:
        return schemas.saved_grader(
            *saved_graders.create_grader(session, project_id=caller.project_id, name=body.name, grader=grader)
        )


@router.get("/graders")
def list_graders(
    caller: ByCaller, session: InSession, limit: Limit = 20, after: str | None = None
) -> Listed[schemas.SavedGraderObject]:
    """List the project's saved graders, newest first."""
    page = saved_graders.list_graders(session, project_id=caller.project_id, limit=limit, after=after)
    return listed(page, lambda row: schemas.saved_grader(*row))


@router.get("/graders/{grader_id}")
def retrieve_grader(caller: ByCaller, session: InSession, grader_id: str) -> schemas.SavedGraderObject:
    """Return a saved grader with its latest version."""
    saved = saved_graders.get_grader(session, project_id=caller.project_id, grader_id=grader_id)
    version = saved_graders.get_version(session, project_id=caller.project_id, grader_id=grader_id)
    return schemas.saved_grader(saved, version)


@router.post("/graders/{grader_id}")
def update_grader(
    caller: ByCaller, session: InSession, grader_id: str, document: JsonObject
) -> schemas.SavedGraderObject:
    """Give a saved grader another name."""
    name = read_body(schemas.NewName, document).name
    saved = saved_graders.rename_grader(session, project_id=caller.project_id, grader_id=grader_id, name=name)
    version = saved_graders.get_version(session, project_id=caller.project_id, grader_id=grader_id)
    return schemas.saved_grader(saved, version)


@router.delete("/graders/{grader_id}")
def delete_grader(caller: ByCaller, session: InSession, grader_id: str) -> schemas.DeletedGrader:
    """Delete a saved grader with its versions."""
    saved_graders.delete_grader(session, project_id=caller.project_id, grader_id=grader_id)
    return schemas.DeletedGrader(id=grader_id)


@router.post("/graders/{grader_id}/versions")
def create_version(
    context: InContext, caller: ByCaller, grader_id: str, document: JsonObject
) -> schemas.VersionObject:
    """Save a grader as the next version; an unchanged one returns the latest."""
    body = read_body(schemas.OnlyGrader, document)
    grader = _parsed(context, caller.project_id, body.grader)
    with context.db.transaction() as session:
        version = saved_graders.add_version(
            session, project_id=caller.project_id, grader_id=grader_id, grader=grader
        )
        return schemas.version_object(version)


@router.get("/graders/{grader_id}/versions")
def list_versions(
    caller: ByCaller, session: InSession, grader_id: str, limit: Limit = 20, after: str | None = None
) -> Listed[schemas.VersionObject]:
    """List a saved grader's versions, newest first."""
    page = saved_graders.list_versions(
        session, project_id=caller.project_id, grader_id=grader_id, limit=limit, after=after
    )
    return listed(page, schemas.version_object)


def _parsed(context: Context, project_id: str, content: object, *, sources: bool = True) -> Grader:
    with context.db.reading() as session:
        found = saved_graders.resolve(session, project_id=project_id, grader=content, param="grader")
    return graders.checked_here(context, found.grader, project_id=project_id, param="grader", sources=sources)


def _is_json(text: str) -> bool:
    try:
        read_json(text)
    except NotJson:
        return False
    return True
