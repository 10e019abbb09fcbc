"""Heartbeats: when each part of the service was last alive, for status and dashboard."""

import os
import socket
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core import clock
from app.core.tables import Heartbeat

# A part that has not beaten for so long is taken for dead.
STALE_SECONDS = 20.0


def beat(session: Session, *, part: str, detail: dict[str, Any] | None = None) -> None:
    """Say that `part`, this process, is alive."""
    session.merge(
        Heartbeat(
            part=part, pid=os.getpid(), host=socket.gethostname(), detail=detail or {}, beat_at=clock.now()
        )
    )


def list_heartbeats(session: Session) -> Sequence[Heartbeat]:
    """Return every part's last heartbeat, by name."""
    return session.scalars(select(Heartbeat).order_by(Heartbeat.part)).all()
