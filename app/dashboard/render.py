"""Turns a page's context into HTML: the Jinja environment, its filters, `asset()`, the response's headers.

The only module that knows Jinja. Called by every noun's routes and by the live stream.
"""

import secrets
from dataclasses import fields
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.core import clock
from app.dashboard import format

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "static"
THEMES = ("auto", "light", "dark")

_FILTERS = (
    format.percent,
    format.points,
    format.score,
    format.signed,
    format.count,
    format.compact,
    format.size,
    format.duration,
    format.absolute,
    format.iso,
    format.middle,
    format.plural,
)


class Page(HTMLResponse):
    """An HTML answer that no cache keeps and no foreign script runs in."""

    headers_of_every_page: ClassVar[dict[str, str]] = {
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
    }


def policy(nonce: str) -> str:
    """Return the content security policy: everything from here, no inline code or style without the nonce."""
    return (
        f"default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'nonce-{nonce}'; "
        "img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )


def page(template: str, context: "DataclassInstance", *, status: int = 200) -> Page:
    """Render a whole page from its context."""
    nonce = secrets.token_urlsafe(16)
    response = Page(render(template, context, nonce=nonce), status_code=status)
    response.headers["Content-Security-Policy"] = policy(nonce)
    for name, value in Page.headers_of_every_page.items():
        response.headers[name] = value
    return response


def render(template: str, context: "DataclassInstance", **more: Any) -> str:
    """Render a template whose names are the context's fields."""
    names = {field.name: getattr(context, field.name) for field in fields(context)}
    return environment().get_template(template).render(**names, **more)


def theme_of(request: Request) -> str:
    """Return the theme this browser chose, `auto` until it did."""
    theme = request.cookies.get("theme", "auto")
    return theme if theme in THEMES else "auto"


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the Jinja environment; a name a context lacks is an error, never an empty string."""
    made = Environment(
        loader=FileSystemLoader(ROOT / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in _FILTERS:
        made.filters[function.__name__] = function
    made.filters["ago"] = lambda moment: format.ago(moment, clock.now())
    made.globals["asset"] = asset
    made.globals["dash"] = format.DASH
    return made


def asset(path: str) -> str:
    """Return the address of a static file, with its digest unless its folder names the version."""
    if path.startswith("vendor/") and "lucide@" not in path:
        return f"/static/{path}"
    file = STATIC / path
    return f"/static/{path}?v={_digest(path, file.stat().st_mtime_ns)}"


@lru_cache(maxsize=256)
def _digest(path: str, _changed: int) -> str:
    return sha256((STATIC / path).read_bytes()).hexdigest()[:12]
