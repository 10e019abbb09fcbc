"""The permission object. Source: https://platform.openai.com/docs/api-reference/fine-tuning/permission-object"""

from typing import Literal

from pydantic import BaseModel

from app.api.bodies import Shape
from app.core.clock import seconds
from app.core.tables import Permission


class NewPermissions(Shape):
    """The body of a create request."""

    project_ids: list[str]


class PermissionObject(BaseModel):
    """A project's right to use a tuned model."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class DeletedPermission(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: Literal[True] = True


def permission_object(permission: Permission) -> PermissionObject:
    """Return the wire form of a permission."""
    return PermissionObject(
        id=permission.id, created_at=seconds(permission.created_at), project_id=permission.project_id
    )
