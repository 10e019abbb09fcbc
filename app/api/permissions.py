"""Routes of checkpoint permissions. A model's name may hold slashes and colons."""

from fastapi import APIRouter

from app.api.bodies import read_body
from app.api.deps import ByCaller, InSession, JsonObject, Limit, LongOrder
from app.api.schemas.lists import ListedWithEnds, listed_with_ends
from app.api.schemas.permissions import (
    DeletedPermission,
    NewPermissions,
    PermissionObject,
    permission_object,
)
from app.core.page import Page
from app.services import permissions

router = APIRouter(
    prefix="/fine_tuning/checkpoints/{model_id:path}/permissions", tags=["checkpoint permissions"]
)


@router.post("")
def create_permissions(
    session: InSession, caller: ByCaller, model_id: str, document: JsonObject
) -> ListedWithEnds[PermissionObject]:
    """Share a model with projects; the answer is a list, as OpenAI's is."""
    body = read_body(NewPermissions, document)
    rows = permissions.create_permissions(
        session, project_id=caller.project_id, model_id=model_id, project_ids=body.project_ids
    )
    return listed_with_ends(Page(rows, has_more=False), permission_object)


@router.get("")
def list_permissions(
    session: InSession,
    caller: ByCaller,
    model_id: str,
    project_id: str | None = None,
    limit: Limit = 10,
    after: str | None = None,
    order: LongOrder = "descending",
) -> ListedWithEnds[PermissionObject]:
    """List who a model is shared with, newest first."""
    page = permissions.list_permissions(
        session,
        project_id=caller.project_id,
        model_id=model_id,
        shared_with=project_id,
        limit=limit,
        after=after,
        descending=order == "descending",
    )
    return listed_with_ends(page, permission_object)


@router.delete("/{permission_id}")
def delete_permission(
    session: InSession, caller: ByCaller, model_id: str, permission_id: str
) -> DeletedPermission:
    """Stop sharing a model with a project."""
    permissions.delete_permission(
        session, project_id=caller.project_id, model_id=model_id, permission_id=permission_id
    )
    return DeletedPermission(id=permission_id)
