"""One-use login tokens and the browser sessions they are exchanged for.

Only SHA-256 digests are kept, so a copy of the database opens no door. Called by the dashboard and by
the command that prints a login address; passwords are not part of this.

Source: OWASP session management: rotate at sign-in, an absolute and an idle limit.
"""

import secrets
from hashlib import sha256

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from app.core import clock
from app.core.errors import Unauthenticated
from app.core.tables import Login

TOKEN_SECONDS = 15 * 60
SESSION_SECONDS = 7 * 24 * 3600
IDLE_SECONDS = 12 * 3600
TOUCH_SECONDS = 60
# 32 random bytes, base64: what `secrets` itself recommends.
_BYTES = 32


def create_token(session: Session, *, project_id: str) -> str:
    """Return a token for one sign-in to `project_id` within fifteen minutes."""
    return _remember(session, kind="token", project_id=project_id, seconds=TOKEN_SECONDS)


def redeem(session: Session, *, token: str) -> str:
    """Exchange a token for a browser session and return the session's secret.

    Raises: Unauthenticated when the token is unknown, used or too old.
    """
    # One statement takes the row, so that of two requests with one token one gets nothing.
    taken = session.execute(
        delete(Login)
        .where(Login.sha256 == digest(token), Login.kind == "token")
        .returning(Login.project_id, Login.expires_at)
    ).one_or_none()
    if taken is None or taken.expires_at <= clock.now():
        raise Unauthenticated("This login address was used already or is older than 15 minutes.")
    return _remember(session, kind="session", project_id=taken.project_id, seconds=SESSION_SECONDS)


def find_session(session: Session, *, secret: str) -> Login | None:
    """Return the browser session of `secret` while it lives: seven days, twelve hours unused."""
    login = session.get(Login, digest(secret))
    now = clock.now()
    if login is None or login.kind != "session":
        return None
    if login.expires_at <= now or login.seen_at + IDLE_SECONDS <= now:
        return None
    return login


def wants_touch(login: Login) -> bool:
    """Say whether the session's last use is old enough to be worth a write."""
    return login.seen_at + TOUCH_SECONDS <= clock.now()


def touch(session: Session, *, secret: str) -> None:
    """Record that the session was used now."""
    session.execute(update(Login).where(Login.sha256 == digest(secret)).values(seen_at=clock.now()))


def end_session(session: Session, *, secret: str) -> None:
    """Sign a browser out; its secret is worth nothing afterwards."""
    session.execute(delete(Login).where(Login.sha256 == digest(secret), Login.kind == "session"))


def sweep(session: Session) -> None:
    """Forget tokens and sessions that are over."""
    session.execute(delete(Login).where(Login.expires_at <= clock.now()))


def digest(secret: str) -> str:
    """Return what is kept of a secret."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _remember(session: Session, *, kind: str, project_id: str, seconds: float) -> str:
    sweep(session)
    secret, now = secrets.token_urlsafe(_BYTES), clock.now()
    session.add(
        Login(
            sha256=digest(secret),
            kind=kind,
            project_id=project_id,
            csrf=secrets.token_urlsafe(_BYTES),
            created_at=now,
            seen_at=now,
            expires_at=now + seconds,
        )
    )
    session.flush()
    return secret
