"""The form that starts a run. It builds the wire's JSON and hands it to the API's own validator, whose
refusals come back beside their fields with everything that was typed.

Files chosen for upload are stored first, so that a refusal later in the form does not lose them.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app.core.context import Context
from app.core.errors import AppError, InvalidRequest, NotFound, TooLarge
from app.core.tables import Model
from app.dashboard import create_graders, create_templates, format, render
from app.dashboard.contexts import Choice, CreatePage, FileField, NumberField
from app.dashboard.files import take_upload
from app.dashboard.job_facts import request_body
from app.dashboard.visitor import Form, Parts, Reading, SignedIn, Visitor, sandbox_line, text
from app.graders.json_text import NotJson, read_json
from app.services import files, jobs, models, saved_graders

router = APIRouter()
MAX_CHOICES = 200
FILE_FIELDS = (
    FileField(
        "training_file",
        "Training file",
        "JSONL, one example a line: messages, and the right answer in keys of its own.",
        True,
    ),
    FileField(
        "validation_file",
        "Validation file",
        "Scored at intervals to choose checkpoints. None: a tenth of the training file is held out.",
        False,
    ),
    FileField(
        "test_file",
        "Test file",
        "Never trained on, never used to choose: it alone gives the verdict at the end.",
        False,
    ),
)
NUMBERS = (
    NumberField("n_epochs", "Epochs", "How often each example is seen."),
    NumberField("batch_size", "Batch size", "Prompts a step. More: steadier, slower steps."),
    NumberField(
        "samples_per_prompt",
        "Samples per prompt",
        "Answers compared with each other. More: slower.",
    ),
    NumberField(
        "learning_rate_multiplier", "Learning rate multiplier", "Scales the rate of the model's size."
    ),
    NumberField("compute_multiplier", "Compute multiplier", "Scales how much is explored in a step."),
    NumberField("eval_interval", "Evaluation interval", "Steps between two validations."),
    NumberField("eval_samples", "Evaluation samples", "Answers graded for each validation example."),
    NumberField(
        "max_completion_tokens", "Longest answer, tokens", "Cut off there, an answer is graded as it is."
    ),
    NumberField("temperature", "Temperature", "Of training rollouts. Lower explores less."),
    NumberField("lora_rank", "LoRA rank", "Size of the adapter that is trained."),
    NumberField("kl_beta", "KL weight", "Holds the model near its base. 0 lets it go."),
)
_METHOD = "method.reinforcement."
_LABELS = {
    "model": "Base model",
    "saved_grader": "Saved grader",
    "grader": "Grader",
    "response_format": "Response format",
    "suffix": "Suffix",
    "seed": "Seed",
    "form": "The form",
    **{field.key: field.label for field in FILE_FIELDS},
    **{field.name: field.label for field in NUMBERS},
}


class Refused(Exception):
    """A field that cannot even be put into a request."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class _Again(Exception):
    """The form is to be shown again, with another choice made in it."""


@router.get("/finetune/new")
def show_form(
    visitor: SignedIn,
    session: Reading,
    context: Parts,
    from_job: Annotated[str, Query(alias="from", max_length=64)] = "",
    file: Annotated[str, Query(max_length=64)] = "",
    grader: Annotated[str, Query(max_length=64)] = "",
    v: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:
    """Show the form, empty, or filled from an earlier job, a file or a saved grader."""
    values = (
        _values_of_job(session, visitor, from_job)
        if from_job
        else {"training_file": file} | create_templates.FIRST
    )
    if grader:
        values["saved_grader"] = create_graders.value_of(grader, v)
    return _page(session, context, visitor, values, {})


@router.post("/finetune/new")
def create_job(visitor: SignedIn, form: Form, context: Parts) -> Response:
    """Start the run, or show the form again with what is wrong."""
    values, errors = {key: text(form, key) for key in _LABELS}, {}
    accepted = [str(value) for value in form.getlist("accepted")]
    try:
        values |= _store_uploads(context, visitor, form)
        if better := text(form, "use"):
            values["saved_grader"] = better
            raise _Again
        _check_readiness(context, visitor, values, accepted)
        body = build_body(values)
        jobs.check_sources(settings=context.settings, body=body)
        with context.db.transaction() as session:
            job = jobs.create_job(
                session, settings=context.settings, project_id=visitor.project_id, body=body
            )
    except _Again:
        pass
    except Refused as refusal:
        errors = {refusal.field: refusal.message}
    except (InvalidRequest, NotFound) as refused:
        field = field_of(refused)
        errors = {"saved_grader" if field == "grader" and values["saved_grader"] else field: refused.message}
    else:
        return RedirectResponse(f"/finetune/{job.id}", status_code=303)
    with context.db.reading() as session:
        return _page(session, context, visitor, values, errors, accepted)


def build_body(values: dict[str, str]) -> dict[str, Any]:
    """Return the request a form stands for. Raises: Refused for text that is no JSON."""
    saved = values.get("saved_grader", "")
    inner: dict[str, Any] = {
        "grader": create_graders.reference_of(saved) if saved else _json(values, "grader")
    }
    response_format = _json(values, "response_format")
    if response_format is not None:
        inner["response_format"] = response_format
    asked = {
        field.name: _number(values[field.name]) for field in NUMBERS if values.get(field.name, "").strip()
    }
    if asked:
        inner["hyperparameters"] = asked
    body: dict[str, Any] = {"method": {"type": "reinforcement", "reinforcement": inner}}
    for key in ("model", "training_file", "validation_file", "test_file", "suffix"):
        if values.get(key, "").strip():
            body[key] = values[key].strip()
    if values.get("seed", "").strip():
        body["seed"] = _number(values["seed"])
    return body


def field_of(error: AppError) -> str:
    """Return the form's field that an error's param names."""
    param = error.param or ""
    inside = param.removeprefix(_METHOD)
    field = inside.removeprefix("hyperparameters.").split(".")[0].split("[")[0]
    return field if field in _LABELS else "form"


def _json(values: dict[str, str], key: str) -> Any:
    typed = values.get(key, "").strip()
    if not typed:
        return None
    try:
        return read_json(typed)
    except NotJson as problem:
        raise Refused(key, f"This is not JSON: {problem}.") from None


def _number(typed: str) -> Any:
    """Return what was typed as a number; anything else goes on as text, for the validator to refuse."""
    typed = typed.strip()
    try:
        value = read_json(typed)
    except NotJson:
        return typed
    return value if isinstance(value, int | float) else typed


def _store_uploads(context: Context, visitor: Visitor, form: FormData) -> dict[str, str]:
    stored = {}
    for field in FILE_FIELDS:
        try:
            file = take_upload(context, visitor, form, f"{field.key}_upload", purpose="fine-tune")
        except (InvalidRequest, TooLarge) as refusal:
            raise Refused(field.key, refusal.message) from None
        if file is not None:
            stored[field.key] = file.id
    return stored


def _values_of_job(session: Session, visitor: Visitor, job_id: str) -> dict[str, str]:
    job = jobs.get_job(session, project_id=visitor.project_id, job_id=job_id)
    body = request_body(job)
    inner = body["method"]["reinforcement"]
    values = {key: str(body[key]) for key in ("model", "suffix", "seed", *_file_keys()) if key in body}
    values |= {name: str(value) for name, value in inner.get("hyperparameters", {}).items()}
    values |= {
        key: create_templates.pretty(inner[key]) for key in ("grader", "response_format") if key in inner
    }
    if (recorded := (job.saved_graders or {}).get(f"{_METHOD}grader")) is not None:
        value = create_graders.value_of(recorded["id"], recorded["version"])
        with suppress(NotFound):  # deleted since: the content it had stands in the form
            saved_graders.get_grader(session, project_id=visitor.project_id, grader_id=recorded["id"])
            values["saved_grader"] = value
    return values


def _check_readiness(
    context: Context, visitor: Visitor, values: dict[str, str], accepted: Sequence[str]
) -> None:
    chosen = values["saved_grader"]
    if not chosen:
        return
    with context.db.reading() as session:
        _, readiness = create_graders.offered(session, context, visitor, chosen, accepted)
    if (words := create_graders.objection(readiness, chosen)) is not None:
        raise Refused("saved_grader", words)


def _file_keys() -> tuple[str, ...]:
    return tuple(field.key for field in FILE_FIELDS)


def _page(
    session: Session,
    context: Context,
    visitor: Visitor,
    values: dict[str, str],
    errors: dict[str, str],
    accepted: Sequence[str] = (),
) -> Response:
    choices, readiness = create_graders.offered(
        session, context, visitor, values.get("saved_grader", ""), accepted
    )
    listed = files.list_files(
        session, project_id=visitor.project_id, purpose="fine-tune", limit=MAX_CHOICES
    ).rows
    page = CreatePage(
        frame=visitor.frame(session, title="Create a run", section="finetune"),
        models=tuple(map(_model_choice, sorted(models.list_base_models(session), key=_parameters))),
        files=tuple(
            Choice(file.id, f"{file.filename} · {format.size(file.bytes)} · {file.id[:12]}…")
            for file in listed
        ),
        file_fields=FILE_FIELDS,
        numbers=NUMBERS,
        are_numbers_open=any(values.get(field.name) or field.name in errors for field in NUMBERS),
        values={key: values.get(key, "") for key in _LABELS},
        errors=errors,
        summary=tuple((key, f"{_LABELS[key]}: {message}") for key, message in errors.items()),
        templates_json=create_templates.as_json(),
        templates=create_templates.GRADER_CHOICES,
        formats=create_templates.FORMAT_CHOICES,
        saved_graders=choices,
        readiness=readiness,
        sandbox=sandbox_line(session),
    )
    return render.page("jobs/new.html", page, status=422 if errors else 200)


def _parameters(model: Model) -> float:
    """Return a base model's size; the smallest is offered first, as it surely fits."""
    parameters = model.details.get("parameters")
    return float(parameters) if isinstance(parameters, int | float) else float("inf")


def _model_choice(model: Model) -> Choice:
    parameters = _parameters(model)
    told = "" if parameters == float("inf") else f" · {format.parameters(parameters)}"
    return Choice(model.id, f"{model.id}{told}")
