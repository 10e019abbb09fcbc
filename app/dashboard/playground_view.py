"""The Playground as it is shown: the choices there are, answers with their grades, and what went wrong.

Called by `playground`.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from sqlalchemy.orm import Session

from app.core.errors import AppError
from app.core.tables import Model
from app.dashboard import addresses, format, playground_form
from app.dashboard.contexts import Choice
from app.dashboard.playground_contexts import ColumnView, PlaygroundPage, SampleView
from app.dashboard.playground_form import Asked, Refused
from app.dashboard.visitor import Visitor
from app.graders.result import Grade
from app.services import models, saved_graders

LABELS = {
    "model": "Model",
    "messages": "Messages",
    "response_format": "Response format",
    "n": "Samples",
    "temperature": "Temperature",
    "top_p": "top_p",
    "max_completion_tokens": "Longest answer",
    "seed": "Seed",
    "grade_with": "Grade with",
    "item": "Item",
}
_ENDINGS = {"length": "cut off at the limit", "tool_calls": "calls a tool"}


def page(
    session: Session,
    visitor: Visitor,
    asked: Asked,
    *,
    base_url: str,
    columns: Sequence[ColumnView] = (),
    errors: Mapping[str, str] | None = None,
    example: str = "",
) -> PlaygroundPage:
    """Return the page around the columns."""
    errors = dict(errors or {})
    try:
        body = asked.body(asked.names[0])
    except Refused:
        body = Asked().body(asked.names[0])
    return PlaygroundPage(
        frame=visitor.frame(session, title="Playground", section="playground"),
        models=_models(session, visitor),
        graders=_graders(session, visitor, asked),
        values=asked.values,
        turns=tuple(asked.turns),
        errors=errors,
        summary=tuple((name, f"{LABELS.get(name, name)}: {words}") for name, words in errors.items()),
        columns=tuple(columns) or empty_columns(session, visitor, asked),
        is_graded=asked.is_graded,
        address=address(asked),
        python=playground_form.python(body, base_url),
        curl=playground_form.curl(body, base_url),
        example=example,
    )


def address(asked: Asked) -> str:
    """Return where this Playground is opened again."""
    values = asked.values
    return addresses.playground(values["model"], compare=values["compare"], job_id=values["job"])


def empty_columns(session: Session, visitor: Visitor, asked: Asked) -> tuple[ColumnView, ...]:
    """Return the columns before anything was asked."""
    return tuple(column(session, visitor, place, name, ()) for place, name in enumerate(asked.names) if name)


def column(
    session: Session,
    visitor: Visitor,
    place: int,
    name: str,
    samples: Sequence[SampleView],
    *,
    reading: str = "",
    error: AppError | None = None,
) -> ColumnView:
    """Return a model's column."""
    found = [row for row in models.list_models(session, project_id=visitor.project_id) if row.id == name]
    model = found[0] if found else None
    is_stopped = error is not None and error.code == "model_stopped"
    return ColumnView(
        place=place,
        model=name,
        href=addresses.model(name),
        kind={"base": "Base model", "tuned": "Tuned model"}.get(model.kind, "Checkpoint") if model else "",
        samples=tuple(samples),
        reading=reading,
        error=None if error is None else error.message,
        can_load=is_stopped and model is not None and model.project_id == visitor.project_id,
        needs=_needs(session, model) if is_stopped else "",
    )


def samples_of(completion: Mapping[str, Any], grades: Sequence[Grade] | None) -> tuple[SampleView, ...]:
    """Return a completion's answers."""
    choices = sorted(completion["choices"], key=lambda one: one["index"])
    return tuple(
        _sample(number, choice, grades[number] if grades is not None else None)
        for number, choice in enumerate(choices)
    )


def texts_of(completion: Mapping[str, Any]) -> list[str]:
    """Return what graders read of a completion's answers."""
    choices = sorted(completion["choices"], key=lambda one: one["index"])
    return [choice["message"].get("content") or "" for choice in choices]


def reading_of(completion: Mapping[str, Any], samples: Sequence[SampleView]) -> str:
    """Say what the answers came to."""
    told = []
    scores = [sample.score for sample in samples if sample.score is not None]
    if scores:
        mean = f"mean {format.score(fmean(scores))} of {len(scores)}"
        told.append(f"score {format.score(scores[0])}" if len(scores) == 1 else mean)
    usage = completion.get("usage") or {}
    if usage.get("completion_tokens") is not None:
        told.append(f"{usage['prompt_tokens']:,} tokens read, {usage['completion_tokens']:,} written")
    return " · ".join(told)


def _sample(number: int, choice: Mapping[str, Any], grade: Grade | None) -> SampleView:
    message = choice["message"]
    calls = [
        f"{one['function']['name']}({one['function']['arguments']})"
        for one in message.get("tool_calls") or ()
    ]
    ending = _ENDINGS.get(choice["finish_reason"] or "", "")
    problem = None
    if grade is not None and grade.reward is None:
        problem = grade.message or "The grader gave no score."
    return SampleView(
        number=number + 1,
        text=message.get("content") or "\n".join(calls),
        ending=ending,
        score=grade.reward if grade is not None else None,
        parts=tuple(grade.parts.items()) if grade is not None else (),
        problem=problem,
    )


def _models(session: Session, visitor: Visitor) -> tuple[Choice, ...]:
    rows = models.list_models(session, project_id=visitor.project_id)
    order = {"tuned": 0, "checkpoint": 1, "base": 2}
    return tuple(
        Choice(row.id, f"{row.id} (base)" if row.kind == "base" else row.id)
        for row in sorted(rows, key=lambda row: order[row.kind])
    )


def _graders(session: Session, visitor: Visitor, asked: Asked) -> tuple[Choice, ...]:
    found = saved_graders.list_graders(session, project_id=visitor.project_id, limit=100).rows
    saved = [Choice(row.id, f"{row.name} (version {row.latest_version})") for row, _ in found]
    of_job = [Choice("job", "The grader of the job")] if asked.values["job"] else []
    return (*of_job, *saved)


def _needs(session: Session, model: Model | None) -> str:
    base = session.get(Model, model.base_model) if model is not None else None
    weights = base.details.get("weights_bytes") if base is not None else None
    return f"Loading it takes about {format.size(weights)} of memory." if isinstance(weights, int) else ""
