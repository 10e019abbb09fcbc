"""Who looks at a page: the signed-in visitor, a session for them, and the forms they send.

A form is read only after its sender is known and its origin checked, so that nobody else can make the
service store a byte. Called by every noun's routes as dependencies.

Source: OWASP CSRF prevention: Fetch metadata, then a token bound to the login.
"""

import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import Depends, Request
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app.core import clock
from app.core.context import Context
from app.core.errors import AppError, Forbidden, InvalidRequest, NotFound, TooLarge
from app.dashboard import render
from app.dashboard.contexts import Frame
from app.services import heartbeats, logins, projects

COOKIE = "tunesmith_login"
# What a form may weigh beside its file, and without one.
FORM_BYTES = 1024 * 1024


class SignInNeeded(AppError):
    """Nobody is signed in; pages answer with the way to the login page."""

    status = 401

    def __init__(self, path: str) -> None:
        super().__init__("Sign in to see this page.")
        self.location = "/login" if path == "/" else f"/login?next={quote(path)}"


@dataclass(frozen=True, slots=True)
class Visitor:
    """A signed-in person: the project they see and the token their forms carry."""

    project_id: str
    csrf: str
    secret: str
    theme: str

    def frame(self, session: Session, *, title: str, section: str) -> Frame:
        """Return what stands around a page's content."""
        project = projects.get_project(session, project_id=self.project_id)
        machine, note, is_down = machine_chip(session)
        return Frame(title, section, project.name, self.csrf, self.theme, machine, note, is_down)


def machine_chip(session: Session) -> tuple[str, str, bool]:
    """Return the top bar's words about the worker, their longer form, and whether it is down."""
    beats = [row for row in heartbeats.list_heartbeats(session) if row.part.startswith("worker")]
    if not beats:
        return (
            "No worker yet",
            "No worker has reported so far. `make up` starts one.",
            True,
        )
    last = max(beats, key=lambda row: row.beat_at)
    if last.beat_at + heartbeats.STALE_SECONDS < clock.now():
        return "Worker down", "The worker has stopped reporting. `make up` starts it again.", True
    device, cores = last.detail.get("device"), last.detail.get("cores")
    told = f"{device} · {cores} cores" if device and cores else str(device or "Worker ready")
    return told, f"Worker on {last.host}, process {last.pid}", False


def sandbox_line(session: Session) -> str:
    """Return what the worker says of its sandbox for Python graders, or nothing before it has spoken."""
    beats = [row for row in heartbeats.list_heartbeats(session) if row.part.startswith("worker")]
    last = max(beats, key=lambda row: row.beat_at, default=None)
    return "" if last is None else str(last.detail.get("sandbox", ""))


def refuse_nul(request: Request) -> None:
    """Refuse an address with a NUL character, which no id holds and Postgres can't be asked for."""
    if "\x00" in request.url.path or "%00" in request.url.query:
        raise NotFound("There is no page at this address.")


def get_context(request: Request) -> Context:
    """Return the process's own parts."""
    context: Context = request.app.state.context
    return context


def get_visitor(request: Request, context: Annotated[Context, Depends(get_context)]) -> Visitor:
    """Return who is signed in. Raises: SignInNeeded."""
    secret = request.cookies.get(COOKIE, "")
    with context.db.reading() as session:
        login = logins.find_session(session, secret=secret) if secret else None
    if login is None:
        query = f"?{request.url.query}" if request.url.query else ""
        raise SignInNeeded(request.url.path + query if request.method == "GET" else "/")
    if logins.wants_touch(login):
        with context.db.transaction() as session:
            logins.touch(session, secret=secret)
    return Visitor(login.project_id, login.csrf, secret, render.theme_of(request))


def get_reading(context: Annotated[Context, Depends(get_context)]) -> Iterator[Session]:
    """Yield a session for a page that only shows."""
    with context.db.reading() as session:
        yield session


def get_session(context: Annotated[Context, Depends(get_context)]) -> Iterator[Session]:
    """Yield a session that commits when the route's function has returned."""
    with context.db.transaction() as session:
        yield session


async def read_form(
    request: Request,
    visitor: Annotated[Visitor, Depends(get_visitor)],
    context: Annotated[Context, Depends(get_context)],
) -> AsyncIterator[FormData]:
    """Yield a form this visitor sent from one of our own pages.

    Raises: Forbidden for another origin or a wrong token, TooLarge.
    """
    if not is_own_origin(request):
        raise Forbidden("This form was sent from another site.")
    is_upload = request.headers.get("content-type", "").startswith("multipart/form-data")
    limit = FORM_BYTES + (3 * context.settings.max_file_bytes if is_upload else 0)
    length = request.headers.get("content-length", "")
    # Browsers always state it, and without it a body could grow without end.
    if not length.isdecimal() or len(length) > 18:
        raise InvalidRequest("The form does not say how long it is.")
    if int(length) > limit:
        raise TooLarge(f"The form is larger than {limit} bytes, the most it may be here.")
    form = await request.form(max_files=8, max_fields=200, max_part_size=FORM_BYTES)
    try:
        if not secrets.compare_digest(text(form, "csrf").encode(), visitor.csrf.encode()):
            raise Forbidden("This form is from an earlier sign-in. Go back, reload the page, try again.")
        yield form
    finally:
        await form.close()


def is_own_origin(request: Request) -> bool:
    """Say whether a request that changes something comes from one of our own pages."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def text(form: FormData, key: str) -> str:
    """Return a field's text, empty when absent, without what no database takes."""
    value = form.get(key)
    if not isinstance(value, str):
        return ""
    return value.replace("\x00", "").encode("utf-8", "ignore").decode()


Parts = Annotated[Context, Depends(get_context)]
SignedIn = Annotated[Visitor, Depends(get_visitor)]
Reading = Annotated[Session, Depends(get_reading, scope="function")]
Writing = Annotated[Session, Depends(get_session, scope="function")]
Form = Annotated[FormData, Depends(read_form)]
