"""The API keys' page: list, make (the secret is shown once), revoke."""

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequest
from app.dashboard import render
from app.dashboard.contexts import KeyRow, KeysPage
from app.dashboard.visitor import Form, Reading, SignedIn, Visitor, Writing, text
from app.services import api_keys

router = APIRouter()


@router.get("/api-keys")
def show_keys(request: Request, visitor: SignedIn, session: Reading) -> Response:
    """Show the project's keys."""
    return _page(request, session, visitor)


@router.post("/api-keys")
def create_key(request: Request, visitor: SignedIn, form: Form, session: Writing) -> Response:
    """Make a key and show its secret, this once: it is rendered into this answer and kept nowhere."""
    name = text(form, "name")
    try:
        _, secret = api_keys.create_key(session, project_id=visitor.project_id, name=name)
    except InvalidRequest as refusal:
        return _page(request, session, visitor, error=refusal.message, name=name, status=422)
    return _page(request, session, visitor, secret=secret)


@router.post("/api-keys/{key_id}/revoke")
def revoke_key(key_id: str, visitor: SignedIn, _form: Form, session: Writing) -> Response:
    """End a key's life."""
    api_keys.revoke_key(session, project_id=visitor.project_id, key_id=key_id)
    return RedirectResponse("/api-keys", status_code=303)


def _page(
    request: Request,
    session: Session,
    visitor: Visitor,
    *,
    secret: str | None = None,
    error: str | None = None,
    name: str = "",
    status: int = 200,
) -> Response:
    rows = tuple(
        KeyRow(key.id, key.name, f"sk-{key.prefix}…", key.created_at, key.last_used_at)
        for key in api_keys.list_keys(session, project_id=visitor.project_id)
    )
    page = KeysPage(
        frame=visitor.frame(session, title="API keys", section="api-keys"),
        rows=rows,
        secret=secret,
        base_url=f"{request.url.scheme}://{request.url.netloc}/v1",
        error=error,
        name=name,
    )
    return render.page("keys/keys.html", page, status=status)
