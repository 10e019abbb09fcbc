"""What stands before the routes: which host was asked, whose key it is, how large the body may be.

Plain ASGI, so that a request is refused before a byte of its body is parsed. `HostGuard` covers the
whole service, `KeyGuard` the API. Assembled by `app/main.py` and `app/api/application.py`.

Source: CVE-2023-48022 and CVE-2025-62593, services on loopback reached through their owner's browser.
"""

import ipaddress
from contextlib import suppress
from dataclasses import dataclass

import anyio
from anyio import to_thread
from sqlalchemy.exc import OperationalError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import scopes
from app.api.handlers import answer
from app.api.limits import Allowance, Limit
from app.core.context import Context
from app.core.errors import AppError, Forbidden, InvalidRequest, TooLarge, Unauthenticated, Unavailable
from app.core.settings import Settings
from app.services import api_keys
from app.services.api_keys import NoKey

# What a form may weigh beside its file.
FORM_BYTES = 1024 * 1024
# A client that is still sending would lose the answer to a reset connection, so a little more is read.
_DRAIN_BYTES, _DRAIN_SECONDS = 16 * 1024 * 1024, 2.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request: a key, and the project it belongs to."""

    project_id: str
    key_id: str
    scopes: frozenset[str]


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
        settings = context.settings
        self.requests = _limited(settings.requests_per_minute, "requests")
        self.wrong_keys = _limited(settings.wrong_keys_per_minute, "wrong API keys")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Put the caller into `scope["state"]` and pass the request on with its body limited."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        allowance: Allowance | None = None
        try:
            caller = await self._admitted(headers, scope)
            if self.requests is not None:
                allowance = self.requests.take(caller.key_id)
            scopes.check(caller.scopes, scope["method"], _path(scope))
            _check_address(scope)
            limit = self._limit(headers, scope["path"])
            _check_length(headers, limit)
        except AppError as error:
            if "expect" not in headers:
                await _drain(receive)
            await answer(error)(scope, receive, _telling(send, allowance))
            return
        scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, _counted(receive, limit), _telling(send, allowance))

    async def _admitted(self, headers: Headers, scope: Scope) -> Caller:
        try:
            caller = await to_thread.run_sync(self._caller, _bearer(headers))
        except NoKey:
            raise
        except Unauthenticated:
            # A right key is never held up by the wrong ones sent from the same address.
            if self.wrong_keys is not None:
                self.wrong_keys.take(scope["client"][0] if scope.get("client") else "")
            raise
        self._check_names(headers, caller)
        return caller

    def _caller(self, secret: str | None) -> Caller:
        try:
            with self.context.db.reading() as session:
                key = api_keys.authenticate(session, secret=secret)
        except OperationalError as problem:
            raise Unavailable("The database can't be reached at the moment. Please try again.") from problem
        if api_keys.is_stale(key):
            # A full disk keeps nobody from reading: when the key was last used is only a note.
            with suppress(OperationalError), self.context.db.transaction() as session:
                api_keys.touch(session, key)
        return Caller(key.project_id, key.id, frozenset(key.scopes))

    def _check_names(self, headers: Headers, caller: Caller) -> None:
        ours = self.context.settings.organization
        organization, project = headers.get("openai-organization"), headers.get("openai-project")
        if organization and organization not in (ours, f"org-{ours}"):
            raise Unauthenticated(
                "The OpenAI-Organization header names another organization than the API key's. Leave it out "
                "(clients send OPENAI_ORG_ID when it is set).",
                code="mismatched_organization",
            )
        if project and project != caller.project_id:
            raise Unauthenticated(
                "The OpenAI-Project header names another project than the API key's. Leave it out "
                "(clients send OPENAI_PROJECT_ID when it is set).",
                code="mismatched_project",
            )

    def _limit(self, headers: Headers, path: str) -> int:
        settings = self.context.settings
        if headers.get("content-type", "").lower().startswith("multipart/form-data"):
            is_part = path.endswith("/parts")
            return (settings.max_part_bytes if is_part else settings.max_file_bytes) + FORM_BYTES
        return settings.max_json_bytes


def _limited(per_minute: int, what: str) -> Limit | None:
    return Limit(per_minute, what) if per_minute else None


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _telling(send: Send, allowance: Allowance | None) -> Send:
    """Return `send` that puts the limit's headers on the answer."""
    if allowance is None:
        return send
    extra = allowance.headers()

    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(extra)
        await send(message)

    return telling


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
