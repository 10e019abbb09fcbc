"""What the sweep forgets: completions and responses older than is set, and nothing else."""

import pytest

from app.core import clock
from app.core.context import Context
from app.core.tables import Completion, Response
from tests.factories import make_project
from worker import retention

DAY = 86_400


@pytest.mark.parametrize(("days", "left"), [(30, ["b"]), (0, ["a", "b"])])
def test_old_conversations_are_forgotten(context: Context, days: int, left: list[str]) -> None:
    now = clock.now()
    with context.db.transaction() as session:
        project_id = make_project(session).id
        for name, age in (("a", 31 * DAY), ("b", 29 * DAY)):
            common = {"id": name, "project_id": project_id, "answer": {}, "created_at": now - age}
            session.add(Completion(**common, model="m", messages=[], asked={}))
            session.add(Response(**common, input=[]))
    settings = context.settings.model_copy(update={"completion_retention_days": days})
    retention.forget_old_conversations(Context(settings, context.db, context.storage, context.queue))
    with context.db.reading() as session:
        for table in (Completion, Response):
            assert sorted(row.id for row in session.query(table)) == left
