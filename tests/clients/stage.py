"""The running service that clients are tried on: with a worker, a webhook receiver, a judge, a
grader's endpoint and keys that may do less.

Used by the scenario, the compatibility page's test and `make compat`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core import clock, ids
from app.core.context import Context
from app.core.tables import Project
from app.services import api_keys
from tests.judge import judging, scores
from tests.receiver import Receiver, listening
from tests.service import Service, running_service


@dataclass(frozen=True)
class Stage:
    """A running service, and what clients must be told about it."""

    service: Service
    receiver: Receiver
    given: dict[str, Any]

    @property
    def base_url(self) -> str:
        """What a client takes as its `base_url`."""
        return f"{self.service.url}/v1"


@contextmanager
def standing(folder: Path) -> Iterator[Stage]:
    """Run the service until the block ends."""
    with (
        listening() as receiver,
        listening() as endpoint,
        judging() as judge,
        running_service(folder, webhook_allow="127.0.0.1", poll_seconds="1") as service,
    ):
        endpoint.answer = b'{"score": 0.25}'
        judge.answer_to = lambda asked: scores("good" if _wants_label(asked) else 0.75)
        judge.write_providers(service.data)
        context = Context.build(service.settings)
        with context.db.transaction() as session:
            project = api_keys.authenticate(session, secret=service.key()).project_id
            other = Project(id=ids.new_id("project"), name="Other", created_at=clock.now())
            session.add(other)
            session.flush()
            key, reading_key = api_keys.create_key(session, project_id=project, name="reads")
            key.scopes = ["files:read"]
            _, other_key = api_keys.create_key(session, project_id=other.id, name="other")
        context.db.dispose()
        given = {
            "model": "tiny",
            "receiver": receiver.url,
            "endpoint": endpoint.url,
            "project": project,
            "reading_key": reading_key,
            "other_key": other_key,
        }
        yield Stage(service, receiver, given)


def _wants_label(asked: dict[str, Any]) -> bool:
    schema = asked["response_format"]["json_schema"]["schema"]
    return "enum" in schema["properties"]["result"]
