"""What stands before the routes: which host was asked, whose key it is, how large the body may be.

Plain ASGI, so that a request is refused before a byte of its body is parsed. `HostGuard` covers the
whole service, `KeyGuard` the API. Assembled by `app/main.py` and `app/api/application.py`.

Source: CVE-2023-48022 and CVE-2025-62593, services on loopback reached through their owner's browser.
"""

import ipaddress
from dataclasses import dataclass

import anyio
from anyio import to_thread
from sqlalchemy.exc import OperationalError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.handlers import answer
from app.core.context import Context
from app.core.errors import AppError, Forbidden, InvalidRequest, TooLarge, Unavailable
from app.core.settings import Settings
from app.services import api_keys

# What a form may weigh beside its file.
FORM_BYTES = 1024 * 1024
# A client that is still sending would lose the answer to a reset connection, so a little more is read.
_DRAIN_BYTES, _DRAIN_SECONDS = 16 * 1024 * 1024, 2.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request: a key, and the project it belongs to."""

    project_id: str
    key_id: str


class HostGuard:
    """Refuses requests for host names that aren't this service's: a foreign name is DNS rebinding."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        names = ("localhost", settings.host, *settings.listed(settings.allowed_hosts))
        self.names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if its Host header is ours."""
        if scope["type"] in ("http", "websocket"):
            host = Headers(scope=scope).get("host", "")
            if not self.is_ours(host):
                refusal = Forbidden(
                    f"This service does not answer to the host name {host[:100]!r}. "
                    "TUNESMITH_ALLOWED_HOSTS lists further names.",
                    code="host_not_allowed",
                )
                await answer(refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def is_ours(self, host: str) -> bool:
        """Say whether a Host header names this service; its port doesn't matter."""
        name = host.lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        if name in self.names:
            return True
        # Rebinding needs a name to rebind: an address was typed by someone who means this machine.
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class KeyGuard:
    """Lets in who has a key, and counts what they send."""

    def __init__(self, app: ASGIApp, *, context: Context) -> None:
        self.app = app
        self.context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Put the caller into `scope["state"]` and pass the request on with its body limited."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            caller = await to_thread.run_sync(self._caller, _bearer(headers))
            _check_address(scope)
            limit = self._limit(headers)
            _check_length(headers, limit)
        except AppError as error:
            if "expect" not in headers:
                await _drain(receive)
            await answer(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, _counted(receive, limit), send)

    def _caller(self, secret: str | None) -> Caller:
        try:
            with self.context.db.reading() as session:
                key = api_keys.authenticate(session, secret=secret)
            if api_keys.is_stale(key):
                with self.context.db.transaction() as session:
                    api_keys.touch(session, key)
        except OperationalError as problem:
            raise Unavailable("The database can't be reached at the moment. Please try again.") from problem
        return Caller(key.project_id, key.id)

    def _limit(self, headers: Headers) -> int:
        if headers.get("content-type", "").lower().startswith("multipart/form-data"):
            return self.context.settings.max_file_bytes + FORM_BYTES
        return self.context.settings.max_json_bytes


def _bearer(headers: Headers) -> str | None:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None


def _check_address(scope: Scope) -> None:
    # Postgres takes no NUL in a text, and no id or cursor of ours holds one.
    if "\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
        raise InvalidRequest("The address of the request holds a NUL character.", code="invalid_value")


def _check_length(headers: Headers, limit: int) -> None:
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise _too_large(limit)


def _counted(receive: Receive, limit: int) -> Receive:
    """Return `receive` that raises TooLarge once the body, chunked or not, passes `limit`."""
    size = 0

    async def counting() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            if message.get("more_body", False):
                await _drain(receive)
            raise _too_large(limit)
        return message

    return counting


async def _drain(receive: Receive) -> None:
    left = _DRAIN_BYTES
    with anyio.move_on_after(_DRAIN_SECONDS):
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            if not message.get("more_body", False):
                return


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body of the request is larger than {limit} bytes, the most it may have here.")
