"""Permissions: a project shares one of its tuned models or checkpoints with other projects.

What a permission allows is asked in `models.get_model`. Called by the API's routes.

Source: https://platform.openai.com/docs/api-reference/fine-tuning/create-permission
"""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core import clock, ids, refusals
from app.core.errors import NotFound
from app.core.page import Page, read_page
from app.core.tables import Permission, Project
from app.services import models

MOST_AT_ONCE = 100


def create_permissions(
    session: Session, *, project_id: str, model_id: str, project_ids: Sequence[str]
) -> Sequence[Permission]:
    """Share a model with projects and return a permission for each; one that stands already is returned.

    Raises: NotFound for a model that isn't the project's own, InvalidRequest for an unknown project.
    """
    model = models.own_model(session, project_id=project_id, model_id=model_id)
    if not 1 <= len(project_ids) <= MOST_AT_ONCE:
        raise refusals.invalid(f"name 1 to {MOST_AT_ONCE} projects", "project_ids")
    wanted = list(dict.fromkeys(project_ids))
    # Locked, so that two requests can't both find a permission missing.
    session.refresh(model, with_for_update=True)
    known = set(session.scalars(select(Project.id).where(Project.id.in_(wanted))))
    for place, other in enumerate(project_ids):
        if other not in known:
            raise refusals.invalid(f"there is no project '{other[:100]}'", f"project_ids[{place}]")
    standing = {
        row.project_id: row
        for row in session.scalars(
            select(Permission).where(Permission.model_id == model_id, Permission.project_id.in_(wanted))
        )
    }
    for other in wanted:
        if other not in standing:
            standing[other] = Permission(
                id=ids.new_id("permission"), model_id=model_id, project_id=other, created_at=clock.now()
            )
            session.add(standing[other])
    session.flush()
    return [standing[other] for other in wanted]


def list_permissions(
    session: Session,
    *,
    project_id: str,
    model_id: str,
    shared_with: str | None = None,
    limit: int = 10,
    after: str | None = None,
    descending: bool = True,
) -> Page[Permission]:
    """Return a page of a model's permissions, newest first unless told otherwise. Raises: NotFound."""
    models.own_model(session, project_id=project_id, model_id=model_id)
    query = select(Permission).where(Permission.model_id == model_id)
    if shared_with is not None:
        query = query.where(Permission.project_id == shared_with)
    return read_page(
        session,
        query,
        keys=[Permission.created_at, Permission.id],
        id_column=Permission.id,
        limit=limit,
        after=after,
        descending=descending,
    )


def delete_permission(session: Session, *, project_id: str, model_id: str, permission_id: str) -> None:
    """End a permission; requests already running end on their own. Raises: NotFound."""
    models.own_model(session, project_id=project_id, model_id=model_id)
    permission = session.get(Permission, permission_id)
    if permission is None or permission.model_id != model_id:
        raise NotFound(f"No such checkpoint permission: {permission_id}", param="permission_id")
    session.delete(permission)
    session.flush()
