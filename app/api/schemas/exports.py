"""The answer to an export's deletion. An export itself is an archive."""

from typing import Literal

from pydantic import BaseModel


class DeletedExport(BaseModel):
    """Whether there was an archive to delete."""

    id: str
    object: Literal["model.export.deleted"] = "model.export.deleted"
    form: str
    deleted: bool
