"""Exports: a tuned model as an archive to take away, in one of three forms. The row is here.

The faces ask for one and hand it out; the worker claims it, builds it and holds it against the trained
model (`worker/export/`). Only what passed is offered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from app.core import clock, queue, refusals
from app.core.db import database_now
from app.core.errors import AppError, Forbidden, InvalidRequest, Unavailable
from app.core.ids import new_id
from app.core.queue import nudge
from app.core.storage import Storage
from app.core.tables import Export, Model
from app.services import files, heartbeats, models

FORMS = ("adapter", "merged", "gguf")
# What worker/export/gguf.py can write.
GGUF_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
# A build that dies is tried once more: its machine may have been short of memory for a moment.
MAX_ATTEMPTS = 2
RETRY_SECONDS = 5
# The end of the folder's name in which an archive is made.
BUILDING = ".building"


class LeaseLost(Exception):
    """The export was deleted, or another worker has it: stop, and write nothing more."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to build an export: valid while the row holds this token."""

    export_id: str
    token: int


def list_exports(session: Session, *, model_id: str) -> dict[str, Export]:
    """Return a model's exports by form."""
    rows = session.scalars(select(Export).where(Export.model_id == model_id)).all()
    return {row.form: row for row in rows}


def ask(session: Session, *, project_id: str, model_id: str, form: str) -> Export:
    """Return a model's export, having it built when nobody asked for it before.

    Raises: NotFound; Forbidden for a model that is not the project's own; InvalidRequest for a form there
    is not, or not of this model.
    """
    model = _exportable(session, project_id=project_id, model_id=model_id)
    if form not in FORMS:
        raise refusals.wrong_value(form, FORMS, "form")
    # Two that ask at once would make twins: the model's row is the lock.
    session.get_one(Model, model_id, with_for_update=True)
    found = list_exports(session, model_id=model_id).get(form)
    if found is not None:
        return found
    obstacle = why_not(session, model=model, form=form)
    if obstacle is not None:
        raise InvalidRequest(obstacle, param="form", code="export_not_supported")
    export = Export(
        id=new_id("export"),
        project_id=project_id,
        model_id=model_id,
        form=form,
        status="queued",
        stage="Waiting for the worker",
        created_at=clock.now(),
    )
    session.add(export)
    session.flush()
    nudge(session, queue.WAKE)
    return export


def why_not(session: Session, *, model: Model, form: str) -> str | None:
    """Return why a model has no such export, or None when it can be tried."""
    base = session.get(Model, model.base_model)
    architecture = None if base is None else base.details.get("architecture")
    if form != "gguf" or architecture is None or architecture in GGUF_ARCHITECTURES:
        return None
    can = ", ".join(name.removesuffix("ForCausalLM") for name in GGUF_ARCHITECTURES)
    return f"GGUF is written here for {can} models; this one is a {architecture}. Take the merged form."


def obstacle_to_download(session: Session, *, export: Export) -> AppError | None:
    """Return the error that stands between an export and its download, or None when it is ready."""
    if export.status == "ready":
        return None
    if export.status in ("queued", "running"):
        return Unavailable(
            f"The export is being made ({export.stage.lower()}, {export.progress:.0%}). "
            f"Ask again in {RETRY_SECONDS} seconds.{_worker_note(session)}",
            code="export_not_ready",
            retry_after=RETRY_SECONDS,
        )
    what = "is not offered" if export.status == "refused" else "could not be made"
    return InvalidRequest(
        f"The export {what}: {export.reason} DELETE this address, then ask again, to have it made anew.",
        param="form",
        code=f"export_{export.status}",
    )


def file_name(export: Export) -> str:
    """Return the name an archive is saved under."""
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in export.model_id)
    return f"{plain}-{export.form}.zip"


def forget(session: Session, *, storage: Storage, project_id: str, model_id: str, form: str) -> bool:
    """Delete an export and say whether there was one; its bytes go once the transaction has committed."""
    _exportable(session, project_id=project_id, model_id=model_id)
    if form not in FORMS:
        raise refusals.wrong_value(form, FORMS, "form")
    export = list_exports(session, model_id=model_id).get(form)
    if export is None:
        return False
    session.delete(export)
    session.flush()
    if export.uri is not None:
        files.remove_after_commit(session, storage, [export.uri])
    return True


# What the worker does to an export. Every write carries the token.


def uri_of(job_id: str, form: str, lease: Lease) -> str:
    """Return where an archive lies once it is made; with BUILDING behind it, where it is made."""
    return f"jobs/{job_id}/exports/{form}-{lease.export_id}.tok-{lease.token}"


def building(session: Session, *, job_id: str) -> list[str]:
    """Return where a job's archives are being made."""
    rows = session.scalars(
        select(Export)
        .join(Model, Model.id == Export.model_id)
        .where(Model.job_id == job_id, Export.status == "running")
    )
    return [uri_of(job_id, row.form, Lease(row.id, row.lease_token)) + BUILDING for row in rows]


def sweep(session: Session) -> None:
    """Give up what died in its last attempt together with its worker, so that nobody said so."""
    rows = session.scalars(
        select(Export).where(_is_dead(), Export.attempts >= MAX_ATTEMPTS).with_for_update(skip_locked=True)
    )
    for export in rows:
        _give_up(export)


def claim(session: Session, *, seconds: float) -> Lease | None:
    """Take the oldest export that waits or whose builder has died, or return None."""
    free = _free()
    oldest = (
        select(Export.id)
        .where(free)
        .order_by(Export.created_at, Export.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    row = session.execute(
        update(Export)
        .where(Export.id == oldest, free)
        .values(
            status="running",
            stage="Starting",
            progress=0.0,
            started_at=database_now(),
            attempts=Export.attempts + 1,
            lease_token=Export.lease_token + 1,
            lease_expires_at=database_now() + seconds,
        )
        .returning(Export.id, Export.lease_token),
        execution_options={"synchronize_session": False},
    ).one_or_none()
    return None if row is None else Lease(row[0], row[1])


def is_waiting(session: Session) -> bool:
    """Say whether there is an export to claim, without waiting for a writer."""
    return session.scalar(select(Export.id).where(_free()).limit(1)) is not None


def renew(session: Session, *, lease: Lease, seconds: float) -> None:
    """Keep an export that is being built. Raises: LeaseLost."""
    _write(session, lease, lease_expires_at=database_now() + seconds)


def tell(session: Session, *, lease: Lease, stage: str, progress: float) -> None:
    """Say how far the building is. Raises: LeaseLost."""
    _write(session, lease, stage=stage, progress=progress)


def offer(
    session: Session, *, lease: Lease, uri: str, size: int, sha256: str, parity: Mapping[str, Any]
) -> None:
    """Offer an archive that passed the gate and whose bytes are durable. Raises: LeaseLost."""
    _end(session, lease, "ready", "Ready", uri=uri, bytes=size, sha256=sha256, parity=dict(parity))


def refuse(session: Session, *, lease: Lease, reason: str, parity: Mapping[str, Any]) -> None:
    """Keep an archive back that did not pass the gate. Raises: LeaseLost."""
    _end(session, lease, "refused", "Refused", reason=reason, parity=dict(parity))


def fail(session: Session, *, lease: Lease, reason: str) -> None:
    """Give an export up. Raises: LeaseLost."""
    _end(session, lease, "failed", "Failed", reason=reason)


def abandon(session: Session, *, lease: Lease, counted: bool = True) -> None:
    """Give back the export of a builder that is gone; one that ended well is left as it is."""
    export = session.get(Export, lease.export_id, with_for_update=True)
    if export is None or export.status != "running" or export.lease_token != lease.token:
        return
    export.attempts -= 0 if counted else 1
    export.lease_expires_at = None
    if export.attempts < MAX_ATTEMPTS:
        export.status, export.stage, export.progress = "queued", "Waiting for the worker", 0.0
        return
    _give_up(export)


def _give_up(export: Export) -> None:
    export.status, export.stage, export.finished_at = "failed", "Failed", clock.now()
    export.lease_expires_at = None
    export.reason = f"Its process was killed {MAX_ATTEMPTS} times, most likely for want of memory."


def _is_dead() -> ColumnElement[bool]:
    return and_(Export.status == "running", Export.lease_expires_at < database_now())


def _free() -> ColumnElement[bool]:
    return and_(or_(Export.status == "queued", _is_dead()), Export.attempts < MAX_ATTEMPTS)


def _end(session: Session, lease: Lease, status: str, stage: str, **values: Any) -> None:
    ended = {"status": status, "stage": stage, "progress": 1.0, "finished_at": database_now()}
    _write(session, lease, lease_expires_at=None, **ended, **values)


def _write(session: Session, lease: Lease, **values: Any) -> None:
    row = session.execute(
        update(Export)
        .where(Export.id == lease.export_id, Export.lease_token == lease.token, Export.status == "running")
        .values(**values)
        .returning(Export.id),
        execution_options={"synchronize_session": False},
    ).one_or_none()
    if row is None:
        raise LeaseLost(lease.export_id)


def _exportable(session: Session, *, project_id: str, model_id: str) -> Model:
    model = models.get_model(session, project_id=project_id, model_id=model_id)
    if model.kind == "base":
        raise InvalidRequest(
            f"'{model_id}' is a base model: its files stand in the model store already. Only tuned models "
            "and checkpoints are exported.",
            param="model",
            code="export_not_supported",
        )
    if model.project_id != project_id:
        raise Forbidden(
            f"You have insufficient permissions for this operation: '{model_id}' is shared by another "
            "project, which allows to use it, not to take it away.",
            param="model",
            code="insufficient_permissions",
        )
    return model


def _worker_note(session: Session) -> str:
    beats: Sequence[Any] = [row for row in heartbeats.list_heartbeats(session) if row.part == "worker"]
    alive = any(row.beat_at + heartbeats.STALE_SECONDS >= clock.now() for row in beats)
    return "" if alive else " No worker is running at the moment: `make status` says more."
