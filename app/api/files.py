"""Routes of files: upload, list, retrieve, content, delete."""

from fastapi import APIRouter
from fastapi.responses import FileResponse

from app.api.deps import ByAttempt, ByCaller, FileLimit, InContext, InSession, Order
from app.api.multipart import Received
from app.api.schemas.files import DeletedFile, FileObject, file_object
from app.api.schemas.lists import ListedWithEnds, listed_with_ends
from app.core.errors import NotFound
from app.services import acceptances, files

router = APIRouter(prefix="/files", tags=["files"])


@router.post("")
def create_file(
    context: InContext, caller: ByCaller, upload: Received, session: InSession, attempt: ByAttempt
) -> FileObject:
    """Upload a file. Sent again, it makes no second one."""
    assert upload.stored is not None
    content = {"sha256": upload.stored.sha256, "filename": upload.filename} | upload.fields
    body_sha256 = acceptances.body_hash(content)
    earlier = acceptances.accepted_before(session, attempt=attempt, noun="file", body_sha256=body_sha256)
    # A twin that was deleted since is none; what an Idempotency-Key made stays its only file.
    if earlier is not None and (
        attempt.idempotency_key is not None
        or files.is_there(session, project_id=caller.project_id, file_id=earlier)
    ):
        found = files.get_file(session, project_id=caller.project_id, file_id=earlier)
        files.discard(context.storage, upload.stored)
        return file_object(found)
    file = files.create_file(
        session,
        stored=upload.stored,
        filename=upload.filename,
        purpose=upload.fields["purpose"],
        expires_after=upload.expires_after,
    )
    acceptances.accept(session, attempt=attempt, noun="file", body_sha256=body_sha256, object_id=file.id)
    return file_object(file)


@router.get("")
def list_files(
    session: InSession,
    caller: ByCaller,
    purpose: str | None = None,
    limit: FileLimit = 10_000,
    after: str | None = None,
    order: Order = "desc",
) -> ListedWithEnds[FileObject]:
    """List the project's files."""
    page = files.list_files(
        session, project_id=caller.project_id, purpose=purpose, limit=limit, after=after, order=order
    )
    return listed_with_ends(page, file_object)


@router.get("/{file_id}")
def retrieve_file(session: InSession, caller: ByCaller, file_id: str) -> FileObject:
    """Return one file."""
    return file_object(files.get_file(session, project_id=caller.project_id, file_id=file_id))


@router.get("/{file_id}/content", response_class=FileResponse)
def retrieve_content(context: InContext, session: InSession, caller: ByCaller, file_id: str) -> FileResponse:
    """Return a file's bytes, whatever the Accept header asks for."""
    file = files.get_file(session, project_id=caller.project_id, file_id=file_id)
    path = context.storage.path(files.file_uri(file))
    if not path.is_file():
        raise NotFound(f"The content of {file_id} is gone from the storage.", param="id")
    return FileResponse(path, media_type="application/octet-stream", filename=file.filename)


@router.delete("/{file_id}")
def delete_file(context: InContext, session: InSession, caller: ByCaller, file_id: str) -> DeletedFile:
    """Delete a file and its bytes."""
    files.delete_file(session, storage=context.storage, project_id=caller.project_id, file_id=file_id)
    return DeletedFile(id=file_id)
