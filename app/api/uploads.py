"""Routes of uploads: create, add a part, complete, cancel."""

from fastapi import APIRouter

from app.api.bodies import read_body
from app.api.deps import ByCaller, InContext, InSession, JsonObject
from app.api.multipart import ReceivedPart
from app.api.schemas.uploads import (
    Completion,
    NewUpload,
    PartObject,
    UploadObject,
    part_object,
    upload_object,
)
from app.services import files, uploads

router = APIRouter(prefix="/uploads", tags=["uploads"])


@router.post("")
def create_upload(
    context: InContext, session: InSession, caller: ByCaller, document: JsonObject
) -> UploadObject:
    """Open an upload, to be completed within an hour."""
    body = read_body(NewUpload, document)
    upload = uploads.create_upload(
        session,
        settings=context.settings,
        project_id=caller.project_id,
        size=body.bytes,
        filename=body.filename,
        mime_type=body.mime_type,
        purpose=body.purpose,
        expires_after=body.expires_after,
    )
    return upload_object(upload)


@router.post("/{upload_id}/parts")
def add_part(received: ReceivedPart, session: InSession, upload_id: str) -> PartObject:
    """Add a part; several may be sent at once."""
    assert received.stored is not None
    return part_object(uploads.add_part(session, upload_id=upload_id, stored=received.stored))


@router.post("/{upload_id}/complete")
def complete_upload(
    context: InContext, caller: ByCaller, upload_id: str, document: JsonObject
) -> UploadObject:
    """Join the parts in the order named; the answer holds the file they became."""
    body = read_body(Completion, document)
    with context.db.reading() as session:
        joint = uploads.prepare_completion(
            session,
            project_id=caller.project_id,
            upload_id=upload_id,
            part_ids=body.part_ids,
            md5=body.md5,
        )
    if joint is None:
        with context.db.reading() as session:
            done = uploads.get_upload(session, project_id=caller.project_id, upload_id=upload_id)
            return upload_object(done, uploads.file_of(session, done))
    # Gigabytes may be copied here, and no transaction waits for them.
    stored = uploads.join(context.storage, joint)
    with files.kept_if_named(context.storage, stored), context.db.transaction() as session:
        upload = uploads.complete_upload(session, storage=context.storage, joint=joint, stored=stored)
        return upload_object(upload, uploads.file_of(session, upload))


@router.post("/{upload_id}/cancel")
def cancel_upload(context: InContext, session: InSession, caller: ByCaller, upload_id: str) -> UploadObject:
    """End an upload without a file; a body is not looked at."""
    upload = uploads.cancel_upload(
        session, storage=context.storage, project_id=caller.project_id, upload_id=upload_id
    )
    return upload_object(upload)
