"""What a person sees when something went wrong: one page for every status, with what to do next.

The dashboard's counterpart of the API's envelope; both show the same AppError.
"""

import logging

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from app.core.errors import AppError
from app.dashboard import render
from app.dashboard.contexts import ErrorPage, Frame
from app.dashboard.visitor import SignInNeeded, get_context, get_visitor

logger = logging.getLogger(__name__)
_HEADINGS = {
    400: "That did not work",
    403: "Not allowed",
    404: "Nothing here",
    405: "Nothing here",
    413: "Too large",
    422: "That did not work",
    503: "Not available at the moment",
    507: "The disk is full",
}
_ADVICE = {
    400: "Go back and try again.",
    403: "Go back, reload the page and try again.",
    404: "It may have been deleted, or the address is mistyped.",
    503: "Wait a moment and reload the page.",
    507: "Free some space on the server, then try again.",
}


def show_app_error(request: Request, error: Exception) -> Response:
    """Render an AppError as a page; someone who is not signed in is sent to sign in."""
    assert isinstance(error, AppError)
    if isinstance(error, SignInNeeded):
        if request.url.path.endswith("/stream"):
            return Response(status_code=401)
        return RedirectResponse(error.location, status_code=303)
    return _show(request, error.status, error.message)


def show_http_error(request: Request, error: Exception) -> Response:
    """Render an unknown address or a wrong method as a page."""
    assert isinstance(error, HTTPException)
    return _show(request, error.status_code, "There is no page at this address.")


def show_invalid(request: Request, error: Exception) -> Response:
    """Render an address whose parameters make no sense as a page."""
    assert isinstance(error, RequestValidationError)
    return _show(request, 422, "The address of this page has a parameter it can't have.")


def show_crash(request: Request, error: Exception) -> Response:
    """Render an unforeseen error as a page; the log has the traceback."""
    logger.error("%s %r failed", request.method, request.url.path, exc_info=error)
    return _show(request, 500, "Something broke on our side, and the log says what.")


def _show(request: Request, status: int, message: str) -> Response:
    page = ErrorPage(
        frame=_frame(request),
        theme=render.theme_of(request),
        status=status,
        heading=_HEADINGS.get(status, "Something went wrong"),
        message=message,
        advice=_ADVICE.get(status, "`make logs` shows the log. Search it for the request id below."),
        request_id=getattr(request.state, "request_id", None),
    )
    return render.page("error.html", page, status=status)


def _frame(request: Request) -> Frame | None:
    """Return the signed-in frame, or None: an error page must not fail for want of a database."""
    try:
        context = get_context(request)
        visitor = get_visitor(request, context)
        with context.db.reading() as session:
            return visitor.frame(session, title="Error", section="")
    except Exception:  # boundary: without a frame the page is plain
        return None
