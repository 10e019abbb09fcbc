"""Turns every error of every API route into OpenAI's envelope. The one place where that happens.

Services raise `AppError`; the framework raises the rest. Called by the router's application and guards.

Source: OpenAI error envelope, https://platform.openai.com/docs/guides/error-codes
"""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from app.core import refusals
from app.core.errors import (
    AppError,
    InvalidRequest,
    NotFound,
    RateLimited,
    StorageFull,
    TooLarge,
    Unavailable,
)

logger = logging.getLogger(__name__)

_WANTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "int_from_float": "an integer",
    "string_type": "a string",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
}


class MethodNotAllowed(AppError):
    """A known address, asked with a method it doesn't have."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_supported"


class Crashed(AppError):
    """A fault of ours; the log holds its story under the request's id."""


def install(app: FastAPI) -> None:
    """Register the handlers below on the API's application."""
    app.add_exception_handler(AppError, _on_app_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    app.add_exception_handler(DataError, _on_refused_data)
    app.add_exception_handler(OperationalError, _on_database_down)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_crash)


def answer(error: AppError) -> JSONResponse:
    """Return the response of one error."""
    headers = {}
    # What has a code and no time to come back only a person can mend; the SDKs would ask twice more.
    is_down = isinstance(error, Unavailable) and error.code is not None and error.retry_after is None
    if isinstance(error, StorageFull) or is_down:
        headers["x-should-retry"] = "false"
    if isinstance(error, Unavailable) and error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, RateLimited):
        headers |= error.headers
    if isinstance(error, TooLarge):
        # Nobody reads the rest of the body, so the connection can't carry another request.
        headers["connection"] = "close"
    return JSONResponse(error.envelope(), status_code=error.status, headers=headers)


def _on_app_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, AppError)
    return answer(error)


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        return answer(NotFound(f"Invalid URL ({request.method} {path})"))
    if error.status_code == 405:
        response = answer(MethodNotAllowed(f"Not allowed to {request.method} on {path}."))
        response.headers.update(error.headers or {})
        return response
    return answer(InvalidRequest(str(error.detail)))


def _on_invalid_parameter(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return answer(invalid_parameter(error.errors()[0]))


def _on_refused_data(request: Request, error: Exception) -> Response:
    logger.warning("%s: the database refused a value: %s", _request_id(request), error)
    return answer(InvalidRequest("A value of the request can't be stored.", code="invalid_value"))


def _on_database_down(request: Request, error: Exception) -> Response:
    assert isinstance(error, OperationalError)
    if _is_full(error):
        logger.error("%s: the database's disk is full: %s", _request_id(request), error)
        return answer(StorageFull("No room is left on the database's disk. Free some space and try again."))
    logger.error("%s: the database can't be reached: %s", _request_id(request), error)
    return answer(Unavailable("The database can't be reached at the moment. Please try again."))


def _is_full(error: OperationalError) -> bool:
    # SQLSTATE 53100, Postgres; SQLite has its message only.
    return getattr(error.orig, "sqlstate", None) == "53100" or "disk is full" in str(error.orig)


def _on_disconnect(_request: Request, _error: Exception) -> Response:
    return answer(InvalidRequest("The connection ended before the request did."))


def _on_crash(request: Request, error: Exception) -> Response:
    request_id = _request_id(request)
    logger.error("%s: unexpected error", request_id, exc_info=error)
    return answer(
        Crashed(
            f"The server had an error while processing your request. Its log tells more under {request_id}."
        )
    )


def _request_id(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", "req_unknown"))


def invalid_parameter(problem: Mapping[str, Any]) -> InvalidRequest:
    """Say what is wrong with one query parameter, in OpenAI's words and codes."""
    name = str(problem["loc"][-1])
    kind, context, value = problem["type"], problem.get("ctx", {}), problem.get("input")
    if kind == "missing":
        return refusals.missing(name)
    if kind == "greater_than_equal":
        return _out_of_bounds(name, value, "below minimum", f">= {context['ge']}", "integer_below_min_value")
    if kind == "less_than_equal":
        return _out_of_bounds(name, value, "above maximum", f"<= {context['le']}", "integer_above_max_value")
    if kind == "extra_forbidden":
        return refusals.unknown(name)
    if (wanted := _WANTED.get(kind)) is not None:
        return refusals.wrong_type(wanted, value, name)
    if kind == "literal_error":
        return InvalidRequest(
            f"Invalid value: {str(value)[:80]!r}. Supported values are: {context['expected']}.",
            param=name,
            code="invalid_value",
        )
    return refusals.invalid(str(problem["msg"]), name)


def _out_of_bounds(name: str, value: object, side: str, bound: str, code: str) -> InvalidRequest:
    message = f"Invalid '{name}': integer {side} value. Expected a value {bound}, but got {value} instead."
    return InvalidRequest(message[:300], param=name, code=code)
