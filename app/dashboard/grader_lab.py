"""The grader lab at work: one form that is validated, tried and saved.

A button's name says what to do (`rows`, `validate`, `try`, `save`); all of it works without a script. What
the form means is `grader_form`, how results look `grader_view`, how the page is filled `grader_page`. No
transaction is open while it grades. Called by `graders`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.errors import AppError, InvalidRequest, NotFound, RateLimited, Unavailable
from app.core.refusals import invalid
from app.core.tables import GraderVersion, SavedGrader
from app.dashboard import grader_form, grader_view
from app.dashboard.contexts import Chip
from app.dashboard.grader_contexts import FindingRow, LabResults
from app.dashboard.visitor import Visitor
from app.graders.sandbox.process import ZygoteError
from app.graders.spec import Grader
from app.services import fresh_answers, graders, inspections, jobs, saved_graders, trial_records, trials
from app.services.fresh_answers import Fresh

TRY_KEYS = ("file", "right", "json", "fresh", "job", "step", "split", "answers")


@dataclass
class Lab:
    """What stands in the lab: its form's type and texts, the saved grader it is open on, what was found."""

    kind: str
    values: dict[str, str]
    saved: SavedGrader | None = None
    version: GraderVersion | None = None
    against: int | None = None
    errors: dict[str, str] = field(default_factory=dict)
    results: LabResults = field(default_factory=LabResults)


def fresh(kind: str, *, file_id: str = "", job_id: str = "") -> Lab:
    """Return the lab of a grader that is yet to be written."""
    tried = dict.fromkeys(TRY_KEYS, "") | {"file": file_id, "job": job_id, "split": "train"}
    return Lab(kind, grader_form.first(kind) | tried)


def opened(saved: SavedGrader, version: GraderVersion) -> Lab:
    """Return the lab of a saved grader's version."""
    kind, values = grader_form.values_of(version.content)
    tried = dict.fromkeys(TRY_KEYS, "") | {"split": "train"}
    return Lab(kind, values | tried | {"name": saved.name}, saved, version)


def work(context: Context, visitor: Visitor, lab: Lab, do: str) -> GraderVersion | None:
    """Do what a button says and put into the lab what came of it; return what was saved, if anything."""
    try:
        if do == "rows":
            _suit(context, visitor, lab)
            return None
        grader = _grader(context, visitor, lab, sources=do == "save")
        if do == "save":
            return _save(context, visitor, lab, grader)
        if do == "validate":
            _validate(context, visitor, lab, grader)
        else:
            _try(context, visitor, lab, grader)
    except grader_form.Refused as refusal:
        lab.errors[refusal.field] = refusal.message
    except (InvalidRequest, NotFound) as refused:
        lab.errors[_field_of(lab.kind, refused)] = refused.message
    except (Unavailable, RateLimited, ZygoteError) as problem:
        lab.results = LabResults(problem=str(problem))
    return None


def _grader(context: Context, visitor: Visitor, lab: Lab, *, sources: bool) -> Grader:
    content = grader_form.content_of(lab.kind, lab.values)
    with context.db.reading() as session:
        found = saved_graders.resolve(session, project_id=visitor.project_id, grader=content, param="grader")
    return graders.checked_here(
        context, found.grader, project_id=visitor.project_id, param="grader", sources=sources
    )


def _save(context: Context, visitor: Visitor, lab: Lab, grader: Grader) -> GraderVersion:
    name, project_id = lab.values["name"], visitor.project_id
    with context.db.transaction() as session:
        if lab.saved is None:
            return saved_graders.create_grader(session, project_id=project_id, name=name, grader=grader)[1]
        saved_graders.rename_grader(session, project_id=project_id, grader_id=lab.saved.id, name=name)
        return saved_graders.add_version(
            session, project_id=project_id, grader_id=lab.saved.id, grader=grader
        )


def _validate(context: Context, visitor: Visitor, lab: Lab, grader: Grader) -> None:
    if lab.values["file"] or lab.values["job"]:
        trial = _gather(context, visitor, replace(_asked(lab.values), answers=(), rows=inspections.ROWS))
    else:
        trial = trials.Trial({}, (), None, bool(lab.values["json"]))
    with graders.means_here(context, grader, project_id=visitor.project_id) as means:
        found = inspections.inspect(grader, trial, means)
    lab.results = grader_view.inspected(grader, found)
    if not trial.rows:
        untried = FindingRow("Rows", Chip("open", "no file chosen", "neutral", "hollow"), "")
        lab.results = replace(lab.results, findings=(*lab.results.findings, untried))


def _try(context: Context, visitor: Visitor, lab: Lab, grader: Grader) -> None:
    if not (lab.values["file"] or lab.values["job"]):
        raise invalid("choose a file, or a job: probes are made from its rows", "file")
    trial = _gather(context, visitor, _with_fresh(context, visitor, lab.values))
    concurrency = context.settings.grader_concurrency
    with graders.means_here(context, grader, project_id=visitor.project_id, concurrency=concurrency) as means:
        report = trials.run(grader, trial, means)
        found = inspections.inspect(grader, trial, means)
    trial_records.keep(context.storage, project_id=visitor.project_id, grader=grader, report=report)
    results = grader_view.tried(report, only_probes=not trial.answers)
    # Where it broke on the right answer is told as validating tells it.
    lab.results = replace(results, error=grader_view.inspected(grader, found).error)


def _gather(context: Context, visitor: Visitor, asked: trials.Asked) -> trials.Trial:
    with context.db.reading() as session:
        return trials.gather(session, storage=context.storage, project_id=visitor.project_id, asked=asked)


def _asked(values: Mapping[str, str]) -> trials.Asked:
    job = None
    if values["job"]:
        step = values["step"].strip()
        if step and not (step.isdecimal() and len(step) < 10):
            raise invalid("it must be a number of a step, or empty for the first", "step")
        job = trials.JobAnswers(values["job"], int(step) if step else None, values["split"] or "train")
    return trials.Asked(
        file_id=values["file"] or None,
        answers=_answers(values["answers"]),
        job=job,
        reference=values["right"].strip() or None,
        json_expected=bool(values["json"]),
    )


def _with_fresh(context: Context, visitor: Visitor, values: Mapping[str, str]) -> trials.Asked:
    """Return what is tried, with fresh answers where a model was chosen to give some."""
    asked = _asked(values)
    if not values["fresh"]:
        return asked
    try:
        return fresh_answers.drawn(
            context,
            project_id=visitor.project_id,
            asked=asked,
            fresh=Fresh(values["fresh"]),
            response_format={"type": "json_object"} if values["json"] else None,
        )
    except (InvalidRequest, NotFound) as refused:
        # Its other parameters are the chat request's own, which nobody typed here.
        raise InvalidRequest(refused.message, param="file" if refused.param == "file" else "fresh") from None


def _answers(typed: str) -> list[tuple[int, str]]:
    """Return the answers of lines like `3: the text`. Raises: InvalidRequest naming the line."""
    found = []
    for number, line in enumerate(typed.split("\n"), 1):
        row, colon, text = line.partition(":")
        if not line.strip():
            continue
        if not colon or not row.strip().isdecimal() or len(row.strip()) > 9:
            raise invalid(f"line {number} does not begin with the number of a row and a colon", "answers")
        found.append((int(row), text.removeprefix(" ")))
    return found


def _field_of(kind: str, error: AppError) -> str:
    param = error.param or ""
    places = {"file": "file", "file_id": "file", "fine_tune_id": "job", "reference": "right", "after": "job"}
    own = param.split("[")[0]
    if own in places:
        return places[own]
    return own if own in TRY_KEYS or own == "name" else grader_form.field_of(kind, error)


def _suit(context: Context, visitor: Visitor, lab: Lab) -> None:
    """Fit a form nobody has written in, and the right answer, to the one plain key of the chosen rows."""
    with context.db.reading() as session:
        item = first_item(session, context, visitor, lab.values)
    plain = [key for key, value in (item or {}).items() if isinstance(value, str | int | float)]
    if len(plain) != 1:
        return
    key = plain[0]
    first = {name: value for name, value in grader_form.first(lab.kind).items() if value}
    if all(lab.values[name] == value for name, value in first.items()):
        lab.values |= {name: _fitted(value, key) for name, value in first.items()}
    if not lab.values["right"]:
        lab.values["right"] = f"{{{{item.{key}}}}}"


def _fitted(text: str, key: str) -> str:
    """Return a ready text that reads `key` where it read `answer`."""
    return text.replace("item.answer", f"item.{key}").replace('item["answer"]', f"item[{json.dumps(key)}]")


def suit(context: Context, visitor: Visitor, lab: Lab) -> None:
    """Do for a lab opened on a file what its button does."""
    if lab.values["file"] or lab.values["job"]:
        work(context, visitor, lab, "rows")


def first_item(
    session: Session, context: Context, visitor: Visitor, values: Mapping[str, str]
) -> Mapping[str, Any] | None:
    """Return the first row of what was chosen, None where nothing was. Raises: InvalidRequest, NotFound."""
    if not (values["file"] or values["job"]):
        return None
    file_id = values["file"] or None
    if values["job"]:
        job = jobs.get_job(session, project_id=visitor.project_id, job_id=values["job"])
        file_id = job.training_file
    asked = trials.Asked(file_id=file_id, rows=1)
    trial = trials.gather(session, storage=context.storage, project_id=visitor.project_id, asked=asked)
    return trial.rows[0][0] if trial.rows else None
