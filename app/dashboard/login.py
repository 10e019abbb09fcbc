"""Signing in and out, and the theme's cookie.

A printed address signs in the browser it is typed or pasted into; followed from another site it first
asks, so that no link can put a visitor into somebody else's project.
"""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from app.core.errors import Forbidden, Unauthenticated
from app.dashboard import render
from app.dashboard.contexts import LoginPage
from app.dashboard.visitor import COOKIE, Form, Parts, SignedIn, Writing, is_own_origin
from app.services import logins

router = APIRouter()
THEME_SECONDS = 365 * 24 * 3600


@router.get("/login")
def show_login(
    request: Request,
    context: Parts,
    token: Annotated[str, Query(max_length=200)] = "",
    next: Annotated[str, Query(max_length=500)] = "/",
) -> Response:
    """Exchange the address's token for a session, or say how to get an address."""
    theme = render.theme_of(request)
    if not token:
        return render.page("login/login.html", LoginPage(theme, None, own_path(next), None))
    # A click on another site must not sign this browser in to somebody else's project.
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return render.page("login/login.html", LoginPage(theme, token, own_path(next), None))
    try:
        with context.db.transaction() as session:
            secret = logins.redeem(session, token=token)
    except Unauthenticated as refusal:
        context_of_page = LoginPage(theme, None, own_path(next), refusal.message)
        return render.page("login/login.html", context_of_page, status=401)
    old = request.cookies.get(COOKIE)
    if old:
        with context.db.transaction() as session:
            logins.end_session(session, secret=old)
    answer = RedirectResponse(own_path(next), status_code=303, headers={"Referrer-Policy": "no-referrer"})
    answer.headers["Cache-Control"] = "no-store"
    answer.set_cookie(
        COOKIE,
        secret,
        max_age=logins.SESSION_SECONDS,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/logout")
def log_out(visitor: SignedIn, _form: Form, session: Writing) -> Response:
    """End this browser's session."""
    logins.end_session(session, secret=visitor.secret)
    answer = RedirectResponse("/login", status_code=303)
    answer.delete_cookie(COOKIE)
    return answer


@router.post("/theme/{theme}")
def choose_theme(theme: str, request: Request) -> Response:
    """Remember light, dark or auto; it is not a secret, so anyone on our own pages may."""
    if not is_own_origin(request) or theme not in render.THEMES:
        raise Forbidden("The theme can be chosen on the dashboard's own pages: light, dark or auto.")
    answer = Response(status_code=204)
    answer.set_cookie("theme", theme, max_age=THEME_SECONDS, samesite="lax")
    return answer


def own_path(address: str) -> str:
    """Return where to go after signing in: a path here, never another site."""
    parts = urlsplit(address)
    is_here = not parts.scheme and not parts.netloc and address.startswith("/") and "\\" not in address
    return address if is_here and not address.startswith("//") and address.isprintable() else "/"
