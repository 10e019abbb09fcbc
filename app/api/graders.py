"""Routes that try a grader out: run it on one answer, or only see whether it is well-formed.

No session: nothing is read or stored, and a slow grader must hold no transaction.
"""

from fastapi import APIRouter

from app.api.bodies import read_body
from app.api.deps import JsonObject
from app.api.schemas.graders import Candidate, NewRun, RunResult, ValidGrader, run_result
from app.graders.grade import grade
from app.graders.spec import dump, parse_grader

router = APIRouter(prefix="/fine_tuning/alpha/graders", tags=["graders"])


@router.post("/run")
def run_grader(document: JsonObject) -> RunResult:
    """Grade one answer. A grading that fails is a 200 as well: `metadata.errors` says what failed."""
    body = read_body(NewRun, document)
    grader = parse_grader(body.grader, for_training=False)
    done = grade(grader, item=body.item or {}, output_text=body.model_sample, json_expected=False)
    return run_result(grader, done)


@router.post("/validate")
def validate_grader(document: JsonObject) -> ValidGrader:
    """Return a well-formed grader in its plain form; the job route asks no more of it."""
    body = read_body(Candidate, document)
    return ValidGrader(grader=dump(parse_grader(body.grader)))
