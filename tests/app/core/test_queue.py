"""Nudges leave after the commit, never before, and a dead broker costs nothing but a poll."""

from typing import Any

import pytest

from app.core import queue
from app.core.context import Context
from app.core.db import Database
from app.core.settings import Settings


class Ear:
    """Hears what a queue is asked to send."""

    def __init__(self, database: Database) -> None:
        self.heard: list[str] = []
        self.database = database

    def send(self, name: str, *_: Any) -> None:
        """Note the name; another transaction may be opened by now."""
        with self.database.transaction():
            self.heard.append(name)


def test_a_nudge_leaves_after_the_commit(context: Context) -> None:
    """Inside the transaction nothing is sent; after it, once; after a rollback, never."""
    ear = Ear(context.db)
    database = Database(context.settings.database, queue=ear)
    with database.transaction() as session:
        queue.nudge(session, queue.WAKE)
        assert ear.heard == []
    assert ear.heard == [queue.WAKE]

    def fail() -> None:
        with database.transaction() as session:
            queue.nudge(session, queue.WAKE)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.transaction():
        pass
    assert ear.heard == [queue.WAKE]
    database.dispose()


def test_a_dead_broker_is_only_logged(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody listens on the socket: the request goes on."""
    queue.Queue(settings).send(queue.WAKE)
    assert "the worker's poll will find the work" in caplog.text
