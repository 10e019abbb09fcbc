"""The models' pages: the list, one model, and what can be done with it: load, stop, export, delete."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.background import BackgroundTask

from app.core.errors import NotFound
from app.core.tables import Model
from app.dashboard import addresses, model_view, render
from app.dashboard.model_contexts import ModelRow, ModelsPage
from app.dashboard.visitor import Form, Parts, Reading, SignedIn, Visitor, Writing, text
from app.services import exports, models, serving

router = APIRouter()
# A name may hold slashes; what comes after it in an address is matched first.
ModelId = Annotated[str, Path(max_length=512)]
EXPORTS = "/models/{model_id:path}/exports"


@router.get("/models")
def show_models(visitor: SignedIn, session: Reading) -> Response:
    """Show every model this project may name."""
    rows = [_row(model, visitor) for model in models.list_models(session, project_id=visitor.project_id)]
    page = ModelsPage(
        frame=visitor.frame(session, title="Models", section="models"),
        base=tuple(row for row in rows if row.kind == "base"),
        tuned=tuple(row for row in rows if row.kind != "base"),
    )
    return render.page("models/models.html", page)


@router.get(EXPORTS)
def show_exports(model_id: ModelId, visitor: SignedIn, session: Reading) -> Response:
    """Show a model's exports alone: what the page asks for while one is being made."""
    model = models.own_model(session, project_id=visitor.project_id, model_id=model_id)
    frame = visitor.frame(session, title=model_id, section="models")
    return render.page("models/_exports.html", model_view.exports_of(session, model, frame))


@router.post(EXPORTS + "/{form}")
def build_export(
    model_id: ModelId, form: str, visitor: SignedIn, context: Parts, _form: Form, session: Writing
) -> Response:
    """Have a form of a model made, anew when there was a try before."""
    given = {"project_id": visitor.project_id, "model_id": model_id, "form": form}
    found = exports.list_exports(session, model_id=model_id).get(form)
    if found is not None and found.status in ("refused", "failed"):
        exports.forget(session, storage=context.storage, **given)
    exports.ask(session, **given)
    return _back(model_id, "exports")


@router.post(EXPORTS + "/{form}/delete")
def delete_export(
    model_id: ModelId, form: str, visitor: SignedIn, context: Parts, _form: Form, session: Writing
) -> Response:
    """Delete an archive."""
    exports.forget(
        session, storage=context.storage, project_id=visitor.project_id, model_id=model_id, form=form
    )
    return _back(model_id, "exports")


@router.get(EXPORTS + "/{form}")
def download_export(
    model_id: ModelId, form: str, visitor: SignedIn, context: Parts, session: Reading
) -> Response:
    """Send an archive that is ready."""
    models.own_model(session, project_id=visitor.project_id, model_id=model_id)
    export = exports.list_exports(session, model_id=model_id).get(form)
    if export is None or export.status != "ready" or export.uri is None:
        raise NotFound("There is no such archive. The model's page says why.")
    path = context.storage.path(export.uri)
    if not path.is_file():
        raise NotFound(
            "The archive is gone from the storage. Delete it on the model's page, and build it anew."
        )
    return FileResponse(path, media_type="application/octet-stream", filename=exports.file_name(export))


@router.post("/models/{model_id:path}/stop")
def stop_model(model_id: ModelId, visitor: SignedIn, context: Parts, _form: Form) -> Response:
    """Let a model answer nobody, and give its memory back."""
    serving.stop(context, project_id=visitor.project_id, model_id=model_id)
    return _back(model_id, "serve")


@router.post("/models/{model_id:path}/load")
def load_model(model_id: ModelId, visitor: SignedIn, context: Parts, form: Form) -> Response:
    """Let a model answer again, and have it loaded meanwhile."""
    given = {"project_id": visitor.project_id, "model_id": model_id}
    serving.load(context, **given)
    origin = text(form, "next")
    is_playground = origin.startswith("/playground?") and origin.isprintable()
    answer = RedirectResponse(origin, status_code=303) if is_playground else _back(model_id, "serve")
    answer.background = BackgroundTask(serving.warm, context, **given)
    return answer


@router.post("/models/{model_id:path}/delete")
def delete_model(
    model_id: ModelId, visitor: SignedIn, context: Parts, _form: Form, session: Writing
) -> Response:
    """Delete a tuned model or checkpoint with its weights and archives."""
    models.delete_model(session, storage=context.storage, project_id=visitor.project_id, model_id=model_id)
    return RedirectResponse("/models", status_code=303)


@router.get("/models/{model_id:path}")
def show_model(request: Request, model_id: ModelId, visitor: SignedIn, context: Parts) -> Response:
    """Show one model."""
    # Asked before the session below is opened: no transaction waits for another process.
    state = serving.serving(context, project_id=visitor.project_id, model_id=model_id)
    base_url = f"{request.url.scheme}://{request.url.netloc}/v1"
    with context.db.reading() as session:
        model = models.get_model(session, project_id=visitor.project_id, model_id=model_id)
        page = model_view.page(session, visitor, model, state=state, base_url=base_url)
    return render.page("models/model.html", page)


def _back(model_id: str, section: str) -> Response:
    return RedirectResponse(f"{addresses.model(model_id)}#{section}", status_code=303)


def _row(model: Model, visitor: Visitor) -> ModelRow:
    return ModelRow(
        id=model.id,
        href=addresses.model(model.id),
        kind=model.kind,
        base=model.base_model,
        job_id=model.job_id if model.project_id == visitor.project_id else None,
        note=_note(model),
        created_at=model.created_at,
    )


def _note(model: Model) -> str:
    details = model.details
    if model.kind == "checkpoint":
        return f"Checkpoint of step {details['step']}" if "step" in details else "Checkpoint"
    if model.kind == "tuned":
        return "Tuned model"
    return " · ".join(model_view.size_of(details).values())
