"""Routes of exports (an extension): a tuned model as an archive, and forgetting it.

Mounted before the models' own routes, whose names may hold slashes.
"""

from fastapi import APIRouter
from fastapi.responses import FileResponse

from app.api.deps import ByCaller, InContext, InSession
from app.api.schemas.exports import DeletedExport
from app.core.errors import Unavailable
from app.services import exports

router = APIRouter(prefix="/models/{model_id:path}/export", tags=["extensions"])


@router.get("", response_class=FileResponse)
def retrieve_export(
    context: InContext, caller: ByCaller, model_id: str, form: str = "adapter"
) -> FileResponse:
    """Return a tuned model as a zip archive, `form` being adapter, merged or gguf.

    The first call has it built and checked; until then the answer is 503 with `retry-after`, which OpenAI's
    clients and `curl --retry` obey.
    """
    # A transaction of its own: the refusal below must not take the request for an export back.
    with context.db.transaction() as session:
        export = exports.ask(session, project_id=caller.project_id, model_id=model_id, form=form)
        obstacle = exports.obstacle_to_download(session, export=export)
    if obstacle is not None:
        raise obstacle
    path = context.storage.path(export.uri or "")
    if not path.is_file():
        raise Unavailable(
            "The archive is gone from the storage. DELETE this address to have it made anew.",
            code="export_lost",
        )
    return FileResponse(
        path,
        media_type="application/octet-stream",
        filename=exports.file_name(export),
        headers={"etag": f'"{export.sha256}"', "x-checksum-sha256": export.sha256 or ""},
    )


@router.delete("")
def delete_export(
    context: InContext, session: InSession, caller: ByCaller, model_id: str, form: str = "adapter"
) -> DeletedExport:
    """Delete an archive; the next GET has it made anew."""
    deleted = exports.forget(
        session, storage=context.storage, project_id=caller.project_id, model_id=model_id, form=form
    )
    return DeletedExport(id=model_id, form=form, deleted=deleted)
