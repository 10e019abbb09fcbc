"""The Celery app, its task names, and `nudge`. A message is only a wake-up: the row is the truth.

`nudge` leaves after the commit, and a broker that is down costs nothing but the seconds until the
worker's next poll. Tasks themselves live in `worker/tasks.py`.
"""

import logging
from typing import Any

from celery import Celery
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.core.settings import Settings

WAKE = "tunesmith.wake"
DELIVER = "tunesmith.deliver"

logger = logging.getLogger(__name__)


class Queue:
    """Sends nudges to the worker. One per process."""

    def __init__(self, settings: Settings) -> None:
        self.celery = celery_app(settings)

    def send(self, name: str, *args: Any) -> None:
        """Send one nudge now; a broker that can't be reached is logged, never raised."""
        try:
            self.celery.send_task(name, args=args, retry=False)
        except Exception as problem:  # boundary: any broker failure is made good by the poll
            logger.warning("nudge %s not sent, the worker's poll will find the work: %s", name, problem)


def celery_app(settings: Settings) -> Celery:
    """Build the Celery app for web (sending) and worker (running)."""
    celery = Celery("tunesmith", broker=settings.broker)
    celery.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue="tunesmith",
        task_serializer="json",
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        # A broker that stays away must not end the worker, and the trainers with it.
        broker_connection_max_retries=None,
        # Without max_retries a nudge to a broker that is down holds its request for six seconds.
        broker_transport_options={"socket_connect_timeout": 2, "socket_timeout": 10, "max_retries": 0},
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
    )
    return celery


def nudge(session: Session, name: str, *args: Any) -> None:
    """Ask for `name` to be sent once this session's transaction has committed."""
    session.info.setdefault("nudges", []).append((name, args))


@event.listens_for(Session, "after_commit")
def _send_nudges(session: Session) -> None:
    queue: Queue | None = session.info.get("queue")
    for name, args in session.info.pop("nudges", []):
        if queue is not None:
            queue.send(name, *args)


@event.listens_for(Session, "after_rollback")
def _drop_nudges(session: Session) -> None:
    session.info.pop("nudges", None)
