"""Models: the base models workers offer, tuned models and kept checkpoints.

Base models are registered by a worker, since only it sees the model store. Called by api, dashboard,
job creation and the runner.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.orm import Session

from app.core import clock
from app.core.errors import Forbidden, InvalidRequest, NotFound
from app.core.ids import random_text
from app.core.settings import Settings
from app.core.storage import Storage
from app.core.tables import Checkpoint, Export, Job, Model, Permission
from app.services import files


def list_models(session: Session, *, project_id: str) -> Sequence[Model]:
    """Return every model this project may name, newest first."""
    return session.scalars(
        select(Model).where(_may_be_named_by(project_id)).order_by(Model.created_at.desc(), Model.id)
    ).all()


def list_base_models(session: Session) -> Sequence[Model]:
    """Return the base models that can be tuned here, smallest name first."""
    return session.scalars(select(Model).where(Model.kind == "base").order_by(Model.id)).all()


def get_model(session: Session, *, project_id: str, model_id: str) -> Model:
    """Return one model: a base model, the project's own, or one shared with it.

    Raises: NotFound `model_not_found`.
    """
    query = select(Model).where(Model.id == model_id, _may_be_named_by(project_id))
    model = session.scalars(query).one_or_none()
    if model is None:
        raise _no_model(model_id)
    return model


def own_model(session: Session, *, project_id: str, model_id: str) -> Model:
    """Return a tuned model or checkpoint of the project itself. Raises: NotFound `model_not_found`."""
    model = session.scalars(
        select(Model).where(Model.id == model_id, Model.project_id == project_id)
    ).one_or_none()
    if model is None:
        raise _no_model(model_id)
    return model


def delete_model(session: Session, *, storage: Storage, project_id: str, model_id: str) -> None:
    """Delete a tuned model or checkpoint; its weights go once the transaction has committed.

    A checkpoint leaves its job's list too. What a job resumes from is not a model and stays.

    Raises: NotFound; Forbidden for a model that is not the project's own.
    """
    model = _governed_model(session, project_id=project_id, model_id=model_id, verb="deleted")
    # The trainer's commits lock this row too: a checkpoint is pushed out or deleted, never half of each.
    job = session.get(Job, model.job_id, with_for_update=True)
    doomed = export_uris(session, model_id=model_id)
    session.execute(delete(Checkpoint).where(Checkpoint.model_id == model_id))
    session.execute(delete(Model).where(Model.id == model_id))
    if model.uri is not None and (job is None or model.uri != job.checkpoint_uri):
        doomed.append(model.uri)
    files.remove_after_commit(session, storage, doomed)


def export_uris(session: Session, *, model_id: str) -> list[str]:
    """Return where a model's archives lie: their rows go with the model's, their bytes must be removed."""
    uris = session.scalars(select(Export.uri).where(Export.model_id == model_id, Export.uri.is_not(None)))
    return [uri for uri in uris if uri is not None]


def stop_model(session: Session, *, project_id: str, model_id: str) -> Model:
    """Let a model answer nobody until it is loaded again.

    Raises: NotFound; Forbidden for a base model or one that another project shares.
    """
    model = _governed_model(session, project_id=project_id, model_id=model_id, verb="stopped")
    model.stopped_at = clock.now()
    session.flush()
    return model


def load_model(session: Session, *, project_id: str, model_id: str) -> Model:
    """Let a stopped model answer again. Raises as `stop_model` does."""
    model = _governed_model(session, project_id=project_id, model_id=model_id, verb="loaded")
    model.stopped_at = None
    session.flush()
    return model


def resolve_start(session: Session, *, settings: Settings, project_id: str, name: str) -> tuple[Model, bool]:
    """Return the model a job starts from, base or tuned, and whether an alias named it.

    Raises: InvalidRequest `model_not_available`, listing the base models there are.
    """
    wanted = settings.model_aliases.get(name, name)
    query = select(Model).where(Model.id == wanted, _may_be_named_by(project_id))
    model = session.scalars(query).one_or_none()
    if model is not None:
        return model, wanted != name
    there = ", ".join(row.id for row in list_base_models(session)) or "none yet (is the worker running?)"
    raise InvalidRequest(
        f"Model {name} is not available for fine-tuning or does not exist. Available: {there}, and this "
        "project's tuned models. TUNESMITH_MODEL_ALIASES maps a hosted name to one of these.",
        param="model",
        code="model_not_available",
    )


def base_of(model_id: str) -> str:
    """Return the base model a name stands on: itself, or the second part of `ft:{base}:…`."""
    return model_id.split(":")[1] if model_id.startswith("ft:") else model_id


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
            row.stopped_at = None  # nobody could load it again
    used = select(Job.model)
    session.execute(
        delete(Model).where(Model.kind == "base", Model.id.not_in(list(found)), Model.id.not_in(used))
    )


def tuned_name(*, start: str, organization: str, suffix: str | None, step: int | None = None) -> str:
    """Return a fresh `ft:` name for what is tuned from `start`; `step` makes it a checkpoint's.

    Source: `ft:{base}:{org}:{suffix}:{id8}[:ckpt-step-N]`, an empty suffix leaving `::`.
    """
    clean = re.sub(r"[^a-z0-9]+", "-", (suffix or "").lower()).strip("-")
    name = f"ft:{base_of(start)}:{organization}:{clean}:{random_text(8)}"
    return name if step is None else f"{name}:ckpt-step-{step}"


def add_tuned(
    session: Session, *, job: Job, model_id: str, kind: str, uri: str, details: Mapping[str, Any]
) -> Model:
    """Make a tuned model or checkpoint known under its name."""
    model = Model(
        id=model_id,
        kind=kind,
        project_id=job.project_id,
        base_model=base_of(job.model),
        job_id=job.id,
        uri=uri,
        details=dict(details),
        created_at=clock.now(),
    )
    session.add(model)
    session.flush()
    return model


def _governed_model(session: Session, *, project_id: str, model_id: str, verb: str) -> Model:
    model = get_model(session, project_id=project_id, model_id=model_id)
    if model.project_id != project_id:
        whose = "a base model" if model.kind == "base" else "shared by another project"
        raise Forbidden(
            f"You have insufficient permissions for this operation: '{model_id}' is {whose}, "
            f"and only a project's own tuned models can be {verb}.",
            param="model",
            code="insufficient_permissions",
        )
    return model


def _may_be_named_by(project_id: str) -> ColumnElement[bool]:
    shared = select(Permission.model_id).where(Permission.project_id == project_id)
    return or_(Model.project_id == project_id, Model.project_id.is_(None), Model.id.in_(shared))


def _no_model(model_id: str) -> NotFound:
    return NotFound(f"The model '{model_id}' does not exist", param="model", code="model_not_found")
