"""The Celery worker: tasks that last seconds, and the supervisor that lives beside them.

A task carries no state: losing one costs a poll's delay, running it twice costs a query.
Started as `celery -A worker.tasks worker --pool threads`.
"""

import logging

from celery.signals import worker_init, worker_shutting_down

from app.core import queue
from app.core.context import Context
from app.core.settings import Settings
from worker.delivery import deliver_due
from worker.supervisor import Supervisor

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")

context = Context.build(Settings())
celery = context.queue.celery
supervisor = Supervisor(context)


@celery.task(name=queue.WAKE)
def wake() -> None:
    """Look for jobs now instead of at the next poll."""
    supervisor.wake()


@celery.task(name=queue.DELIVER)
def deliver() -> None:
    """Send the webhooks that are due."""
    deliver_due(context)


# Not `worker_ready`, which waits for the broker: polling needs none.
@worker_init.connect
def _start(**_: object) -> None:
    supervisor.start()


@worker_shutting_down.connect
def _stop(**_: object) -> None:
    supervisor.stop()
