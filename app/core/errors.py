"""Errors that carry their status, type, code and param.

Raised in services, rendered in one file per face (`api/handlers.py`, `dashboard/handlers.py`).
No HTTP framework is imported here.

Source: OpenAI error envelope, https://platform.openai.com/docs/guides/error-codes
"""

from collections.abc import Mapping
from typing import ClassVar


class AppError(Exception):
    """An error a user can read: message, HTTP status, and OpenAI's type, code and param."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """Return the body OpenAI's SDKs parse."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(AppError):
    """The request itself is wrong; the message says what to change."""

    status = 400
    type = "invalid_request_error"


class Unauthenticated(AppError):
    """No key, or a key that is not one of ours."""

    status = 401
    type = "invalid_request_error"
    default_code: ClassVar[str | None] = "invalid_api_key"


class Forbidden(AppError):
    """A known caller without the right to do this."""

    status = 403
    type = "invalid_request_error"


class NotFound(AppError):
    """What does not exist, or is not yours."""

    status = 404
    type = "invalid_request_error"


class TooLarge(AppError):
    """A body over its limit."""

    status = 413
    type = "invalid_request_error"


class RateLimited(AppError):
    """More requests than a limit allows; `headers` say when to come back."""

    status = 429
    type = "requests"
    default_code: ClassVar[str | None] = "rate_limit_exceeded"

    def __init__(self, message: str, *, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.headers = dict(headers)


class StorageFull(AppError):
    """The disk has no room; only a person can mend it, so clients are told not to retry."""

    status = 507
    type = "server_error"
    default_code = "insufficient_storage"


class Unavailable(AppError):
    """A part this request needs is down. Units: `retry_after` in seconds."""

    status = 503
    type = "server_error"

    def __init__(self, message: str, *, code: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after
