"""The upload and part objects. Source: https://platform.openai.com/docs/api-reference/uploads/object"""

from typing import Any, Literal

from pydantic import BaseModel

from app.api.bodies import Shape
from app.api.schemas.files import FileObject, file_object
from app.core.clock import seconds
from app.core.tables import File, Upload, UploadPart
from app.services import uploads


class NewUpload(Shape):
    """The body of a create request."""

    bytes: int
    filename: str
    mime_type: str
    purpose: str
    expires_after: dict[str, Any] | None = None


class Completion(Shape):
    """The body of a completion: the parts in their order."""

    part_ids: list[str]
    md5: str | None = None


class UploadObject(BaseModel):
    """An upload as its owner sees it; `file` once it is completed."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: FileObject | None


class PartObject(BaseModel):
    """A part of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


def upload_object(upload: Upload, file: File | None = None) -> UploadObject:
    """Return the wire form of an upload and of the file it became."""
    return UploadObject(
        id=upload.id,
        bytes=upload.bytes,
        created_at=seconds(upload.created_at),
        expires_at=seconds(upload.expires_at),
        filename=upload.filename,
        purpose=upload.purpose,
        status=uploads.status(upload),
        file=None if file is None else file_object(file),
    )


def part_object(part: UploadPart) -> PartObject:
    """Return the wire form of a part."""
    return PartObject(id=part.id, created_at=seconds(part.created_at), upload_id=part.upload_id)
