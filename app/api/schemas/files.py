"""The file object. Source: https://platform.openai.com/docs/api-reference/files/object"""

from typing import Literal

from pydantic import BaseModel

from app.core.clock import seconds
from app.core.tables import File


class FileObject(BaseModel):
    """A file as its owner sees it."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: str | None


class DeletedFile(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def file_object(file: File) -> FileObject:
    """Return the wire form of a file."""
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=seconds(file.created_at),
        expires_at=None if file.expires_at is None else seconds(file.expires_at),
        filename=file.filename,
        purpose=file.purpose,
        status=file.status,
        status_details=file.status_details,
    )
