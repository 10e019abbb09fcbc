"""Models: the base models workers offer, tuned models and kept checkpoints.

Base models are registered by a worker, since only it sees the model store. Called by api, dashboard,
job creation and the runner.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from app.core import clock
from app.core.errors import InvalidRequest, NotFound
from app.core.ids import random_text
from app.core.settings import Settings
from app.core.tables import Job, Model


def list_models(session: Session, *, project_id: str) -> Sequence[Model]:
    """Return every model this project may name, newest first."""
    return session.scalars(
        select(Model)
        .where(or_(Model.project_id == project_id, Model.project_id.is_(None)))
        .order_by(Model.created_at.desc(), Model.id)
    ).all()


def list_base_models(session: Session) -> Sequence[Model]:
    """Return the base models that can be tuned here, smallest name first."""
    return session.scalars(select(Model).where(Model.kind == "base").order_by(Model.id)).all()


def get_model(session: Session, *, project_id: str, model_id: str) -> Model:
    """Return one model. Raises: NotFound `model_not_found`."""
    model = session.get(Model, model_id)
    if model is None or model.project_id not in (None, project_id):
        raise NotFound(f"The model '{model_id}' does not exist", param="model", code="model_not_found")
    return model


def resolve_base(session: Session, *, settings: Settings, name: str) -> tuple[Model, bool]:
    """Return the base model a job asks for, and whether an alias named it.

    Raises: InvalidRequest `model_not_available`, listing the models there are.
    """
    wanted = settings.model_aliases.get(name, name)
    model = session.get(Model, wanted)
    if model is not None and model.kind == "base":
        return model, wanted != name
    there = ", ".join(row.id for row in list_base_models(session)) or "none yet (is the worker running?)"
    if model is not None or wanted.startswith("ft:"):
        message = f"Model {name} can't be tuned further here: name a base model."
    else:
        message = f"Model {name} is not available for fine-tuning or does not exist."
    raise InvalidRequest(
        f"{message} Available: {there}. TUNESMITH_MODEL_ALIASES maps a hosted name to one of these.",
        param="model",
        code="model_not_available",
    )


def register_base_models(session: Session, *, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Make the base models exactly those a worker has `found`: id to details.

    One that is gone goes on standing while a job names it, so that its tuned models keep their parent.
    """
    for model_id, details in found.items():
        row = session.get(Model, model_id)
        if row is None:
            session.add(
                Model(
                    id=model_id,
                    kind="base",
                    base_model=model_id,
                    details=dict(details),
                    created_at=clock.now(),
                )
            )
        else:
            row.details = dict(details)
    used = select(Job.model)
    session.execute(
        delete(Model).where(Model.kind == "base", Model.id.not_in(list(found)), Model.id.not_in(used))
    )


def tuned_name(*, base: str, organization: str, suffix: str | None, step: int | None = None) -> str:
    """Return a fresh `ft:` name; `step` makes it a checkpoint's.

    Source: `ft:{base}:{org}:{suffix}:{id8}[:ckpt-step-N]`, an empty suffix leaving `::`.
    """
    clean = re.sub(r"[^a-z0-9]+", "-", (suffix or "").lower()).strip("-")
    name = f"ft:{base}:{organization}:{clean}:{random_text(8)}"
    return name if step is None else f"{name}:ckpt-step-{step}"


def add_tuned(
    session: Session, *, job: Job, model_id: str, kind: str, uri: str, details: Mapping[str, Any]
) -> Model:
    """Make a tuned model or checkpoint known under its name."""
    model = Model(
        id=model_id,
        kind=kind,
        project_id=job.project_id,
        base_model=job.model,
        job_id=job.id,
        uri=uri,
        details=dict(details),
        created_at=clock.now(),
    )
    session.add(model)
    session.flush()
    return model
