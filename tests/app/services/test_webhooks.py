"""Endpoints and the outbox: what is written, for whom, and in whose transaction. On both databases."""

import pytest
from sqlalchemy import select

from app.core.db import Database
from app.core.errors import InvalidRequest, NotFound
from app.core.queue import DELIVER
from app.core.settings import Settings
from app.core.tables import Delivery, Project, Webhook, WebhookEndpoint
from app.services import deliveries, webhooks

URL = "https://hooks.example.com/x"
SUCCEEDED, FAILED, CANCELLED = webhooks.EVENT_TYPES


@pytest.fixture
def projects(database: Database) -> tuple[str, str]:
    """Two projects."""
    with database.transaction() as session:
        session.add_all([Project(id=f"proj_{name}", name=name, created_at=1.0) for name in "ab"])
    return "proj_a", "proj_b"


def add(database: Database, settings: Settings, project_id: str, *event_types: str, name: str = "x") -> str:
    """Create an endpoint and return its id."""
    with database.transaction() as session:
        endpoint, _ = webhooks.create_endpoint(
            session, settings=settings, project_id=project_id, name=name, url=URL, event_types=event_types
        )
        return endpoint.id


def test_an_endpoint_lives(database: Database, settings: Settings, projects: tuple[str, str]) -> None:
    """Created, read, changed, rotated, deleted; and to another project it never existed."""
    mine, other = projects
    with database.transaction() as session:
        endpoint, secret = webhooks.create_endpoint(
            session, settings=settings, project_id=mine, name=" Deploys ", url=URL, event_types=[FAILED] * 2
        )
    assert (endpoint.name, endpoint.event_types) == ("Deploys", [FAILED])
    assert secret.startswith("whsec_") and len(secret) == 50
    where = {"endpoint_id": endpoint.id}
    with database.transaction() as session:
        changed = webhooks.update_endpoint(
            session, settings=settings, project_id=mine, event_types=[SUCCEEDED, FAILED], **where
        )
        assert (changed.name, changed.event_types) == ("Deploys", [SUCCEEDED, FAILED])
        assert changed.updated_at > changed.created_at
        moment = changed.updated_at
        same = webhooks.update_endpoint(session, settings=settings, project_id=mine, name="Deploys", **where)
        assert same.updated_at == moment
        _, rotated = webhooks.rotate_secret(session, project_id=mine, **where)
        assert rotated != secret
    with database.reading() as session, pytest.raises(NotFound):
        webhooks.get_endpoint(session, project_id=other, **where)
    with database.transaction() as session, pytest.raises(NotFound):
        webhooks.delete_endpoint(session, project_id=other, **where)
    with database.transaction() as session:
        webhooks.delete_endpoint(session, project_id=mine, **where)
    with database.reading() as session:
        assert webhooks.list_endpoints(session, project_id=mine).rows == []


def test_endpoints_are_listed_newest_first(
    database: Database, settings: Settings, projects: tuple[str, str]
) -> None:
    """In pages, of this project only."""
    mine, other = projects
    ids = [add(database, settings, mine, FAILED, name=str(number)) for number in range(3)]
    add(database, settings, other, FAILED)
    with database.reading() as session:
        first = webhooks.list_endpoints(session, project_id=mine, limit=2)
        rest = webhooks.list_endpoints(session, project_id=mine, limit=2, after=first.rows[-1].id)
    assert [row.id for row in [*first.rows, *rest.rows]] == ids[::-1]
    assert (first.has_more, rest.has_more) == (True, False)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": "  "}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"url": "http://hooks.example.com/"}, "url"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"event_types": []}, "event_types"),
        ({"event_types": [FAILED, "batch.completed"]}, "event_types"),
    ],
)
def test_what_is_wrong_is_named(
    database: Database,
    settings: Settings,
    projects: tuple[str, str],
    change: dict[str, object],
    param: str,
) -> None:
    """A bad field is a 400 that names it, at creation and at a change, and nothing is written."""
    good: dict[str, object] = {"name": "x", "url": URL, "event_types": [FAILED]}
    with database.transaction() as session, pytest.raises(InvalidRequest) as refusal:
        webhooks.create_endpoint(session, settings=settings, project_id="proj_a", **{**good, **change})
    assert refusal.value.param == param
    endpoint_id = add(database, settings, "proj_a", FAILED)
    with database.transaction() as session, pytest.raises(InvalidRequest):
        webhooks.update_endpoint(
            session, settings=settings, project_id="proj_a", endpoint_id=endpoint_id, **change
        )
    with database.reading() as session:
        [row] = session.scalars(select(WebhookEndpoint))
        assert (row.name, row.url, row.event_types) == ("x", URL, [FAILED])


def test_emit_reaches_who_asked(database: Database, settings: Settings, projects: tuple[str, str]) -> None:
    """Enabled endpoints of the project that want this event get one delivery each; a nudge follows."""
    mine, other = projects
    wants = add(database, settings, mine, SUCCEEDED, FAILED)
    add(database, settings, mine, CANCELLED)
    add(database, settings, other, SUCCEEDED)
    disabled = add(database, settings, mine, SUCCEEDED)
    with database.transaction() as session:
        webhooks.disable_endpoint(session, endpoint_id=disabled, reason="gone")
    with database.transaction() as session:
        webhook = webhooks.emit(session, project_id=mine, type=SUCCEEDED, object_id="ftjob-1")
        assert session.info["nudges"] == [(DELIVER, ())]
    assert webhook.id.startswith("evt_")
    with database.reading() as session:
        [delivery] = session.scalars(select(Delivery))
        assert (delivery.endpoint_id, delivery.webhook_id, delivery.status) == (wants, webhook.id, "pending")
        assert delivery.id.startswith("wh_") and int(delivery.id[3:], 16) >= 0 and len(delivery.id) == 35
        assert abs(delivery.next_attempt_at - delivery.created_at) < 60
        [listed] = deliveries.list_deliveries(session, endpoint_id=wants).rows
        assert listed.id == delivery.id


def test_emit_belongs_to_its_transaction(
    database: Database, settings: Settings, projects: tuple[str, str]
) -> None:
    """What did not happen was not told: a rollback takes the outbox row and the nudge with it."""
    add(database, settings, "proj_a", SUCCEEDED)

    def fails() -> None:
        with database.transaction() as session:
            webhooks.emit(session, project_id="proj_a", type=SUCCEEDED, object_id="ftjob-1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    with database.reading() as session:
        assert session.scalars(select(Webhook)).all() == []
        assert session.scalars(select(Delivery)).all() == []


def test_disabling_gives_up_what_waits(
    database: Database, settings: Settings, projects: tuple[str, str]
) -> None:
    """Pending deliveries fail with the reason; an update enables the endpoint for what comes next."""
    endpoint_id = add(database, settings, "proj_a", SUCCEEDED)
    with database.transaction() as session:
        webhooks.emit(session, project_id="proj_a", type=SUCCEEDED, object_id="ftjob-1")
        webhooks.disable_endpoint(session, endpoint_id=endpoint_id, reason="it is gone")
    with database.transaction() as session:
        webhooks.emit(session, project_id="proj_a", type=SUCCEEDED, object_id="ftjob-2")
        webhooks.update_endpoint(session, settings=settings, project_id="proj_a", endpoint_id=endpoint_id)
        webhooks.emit(session, project_id="proj_a", type=SUCCEEDED, object_id="ftjob-3")
    with database.reading() as session:
        query = (
            select(Webhook.object_id, Delivery.status, Delivery.error)
            .join(Delivery)
            .order_by(Webhook.object_id)
        )
        rows = [tuple(row) for row in session.execute(query)]
    assert rows == [("ftjob-1", "failed", "Not sent: it is gone"), ("ftjob-3", "pending", None)]
