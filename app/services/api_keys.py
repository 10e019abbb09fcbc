"""API keys: making, proving, listing and revoking them. Only a key's prefix and SHA-256 are kept.

Called by the API's guard on every request, by the command that prints a key, and by the dashboard.
"""

import hmac
import zlib
from collections.abc import Sequence
from hashlib import sha256
from typing import ClassVar, Literal, get_args

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from app.core import clock, ids, refusals
from app.core.errors import InvalidRequest, NotFound, Unauthenticated
from app.core.tables import ApiKey

Scope = Literal[
    "jobs:read",
    "jobs:write",
    "files:read",
    "files:write",
    "models:use",
    "graders:run",
    "webhooks:admin",
    "admin",
]
SCOPES: tuple[Scope, ...] = get_args(Scope)
# Everything, and what no other scope allows.
ADMIN: Scope = "admin"
TOUCH_SECONDS = 60.0
_PREFIX, _RANDOM, _CHECK = 8, 40, 8


class NoKey(Unauthenticated):
    """The request carries no key at all."""

    default_code: ClassVar[str | None] = None


def create_key(
    session: Session, *, project_id: str, name: str, scopes: Sequence[str] = (ADMIN,)
) -> tuple[ApiKey, str]:
    """Insert a key and return it with its secret, which can't be read again. Raises: InvalidRequest."""
    name = name.strip()
    if not 1 <= len(name) <= 255 or not name.isprintable():
        raise InvalidRequest("A key's name has 1 to 255 printable characters.", param="name")
    if not scopes:
        raise refusals.invalid("a key has at least one scope", "scopes")
    for scope in scopes:
        if scope not in SCOPES:
            raise refusals.wrong_value(scope, SCOPES, "scopes")
    prefix = ids.random_text(_PREFIX)
    body = f"sk-{prefix}-{ids.random_text(_RANDOM)}"
    secret = f"{body}-{_checksum(body)}"
    key = ApiKey(
        id=ids.new_id("key"),
        project_id=project_id,
        name=name,
        prefix=prefix,
        scopes=list(dict.fromkeys(scopes)),
        sha256=_digest(secret),
        created_at=clock.now(),
    )
    session.add(key)
    session.flush()
    return key, secret


def authenticate(session: Session, *, secret: str | None) -> ApiKey:
    """Return the live key this secret belongs to. Raises: Unauthenticated, in OpenAI's words."""
    if not secret:
        raise NoKey(
            "You didn't provide an API key. You need to provide your API key in an Authorization header "
            "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY). `make key` prints a new one."
        )
    body, _, checksum = secret.rpartition("-")
    # A typing error or another service's key is known as such without asking the database.
    if checksum != _checksum(body):
        raise _incorrect(secret)
    prefix = body.removeprefix("sk-")[:_PREFIX]
    key = session.scalars(select(ApiKey).where(ApiKey.prefix == prefix)).one_or_none()
    if key is None or not hmac.compare_digest(key.sha256, _digest(secret)) or key.revoked_at is not None:
        raise _incorrect(secret)
    return key


def is_stale(key: ApiKey) -> bool:
    """Say whether `touch` would write: a key's last use is noted at most once a minute."""
    return key.last_used_at is None or key.last_used_at < clock.now() - TOUCH_SECONDS


def touch(session: Session, key: ApiKey) -> None:
    """Note that the key was used just now, unless that was noted within the last minute."""
    now = clock.now()
    is_old = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now - TOUCH_SECONDS)
    session.execute(update(ApiKey).where(ApiKey.id == key.id, is_old).values(last_used_at=now))


def list_keys(session: Session, *, project_id: str) -> Sequence[ApiKey]:
    """Return the project's keys that still work, newest first."""
    query = select(ApiKey).where(ApiKey.project_id == project_id, ApiKey.revoked_at.is_(None))
    return session.scalars(query.order_by(ApiKey.created_at.desc(), ApiKey.id)).all()


def revoke_key(session: Session, *, project_id: str, key_id: str) -> ApiKey:
    """End a key's life; revoking it twice changes nothing. Raises: NotFound."""
    query = select(ApiKey).where(ApiKey.project_id == project_id, ApiKey.id == key_id)
    key = session.scalars(query).one_or_none()
    if key is None:
        raise NotFound(f"No such API key: {key_id}", param="id")
    if key.revoked_at is None:
        key.revoked_at = clock.now()
        session.flush()
    return key


def _digest(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode('utf-8', 'surrogatepass')):0{_CHECK}x}"


def _incorrect(secret: str) -> Unauthenticated:
    printable = "".join(c for c in secret if c.isprintable())
    shown = f"{printable[:7]}****{printable[-4:]}" if len(printable) >= 20 else "****"
    return Unauthenticated(
        f"Incorrect API key provided: {shown}. `make key` prints a new one; the dashboard lists yours."
    )
