"""From the outbox to a real receiver: the official SDK accepts what arrives, and what failed comes again."""

import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import run

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from sqlalchemy import select, update

from app.core import clock, migrate
from app.core.context import Context
from app.core.settings import Settings
from app.core.tables import Delivery, WebhookEndpoint
from app.services import deliveries, projects, webhooks
from tests.receiver import Receiver, listening
from worker.delivery import deliver_due

SUCCEEDED, _, CANCELLED = webhooks.EVENT_TYPES


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on loopback."""
    with listening() as receiver:
        yield receiver


@pytest.fixture
def allowing(tmp_path: Path) -> Iterator[Context]:
    """A process's parts whose operator lets webhooks reach loopback."""
    settings = Settings(data=tmp_path / "data", webhook_allow="127.0.0.1")
    migrate.upgrade(settings)
    context = Context.build(settings)
    yield context
    context.db.dispose()


def subscribe(context: Context, url: str) -> tuple[str, str]:
    """Create an endpoint and return its id and secret."""
    with context.db.transaction() as session:
        endpoint, secret = webhooks.create_endpoint(
            session,
            settings=context.settings,
            project_id=projects.default_project(session).id,
            name="receiver",
            url=url,
            event_types=[SUCCEEDED],
        )
        return endpoint.id, secret


def succeed(context: Context, job_id: str) -> None:
    """Let a job succeed, as the outbox sees it."""
    with context.db.transaction() as session:
        project = projects.default_project(session)
        webhooks.emit(session, project_id=project.id, type=SUCCEEDED, object_id=job_id)


def make_due(context: Context) -> None:
    """Let every pause and every lease be over."""
    with context.db.transaction() as session:
        session.execute(update(Delivery).values(next_attempt_at=0.0))
        session.execute(
            update(Delivery).where(Delivery.lease_expires_at.is_not(None)).values(lease_expires_at=0.0)
        )


def rows(context: Context) -> list[Delivery]:
    """Read every delivery."""
    with context.db.reading() as session:
        return list(session.scalars(select(Delivery).order_by(Delivery.created_at)))


def test_the_official_client_accepts_a_delivery(allowing: Context, receiver: Receiver) -> None:
    """`unwrap` returns the event; tampered, late, early and foreign ones are refused."""
    _, secret = subscribe(allowing, receiver.url)
    succeed(allowing, "ftjob-abc")
    assert deliver_due(allowing, limit=10) == 1
    [request] = receiver.received
    client = OpenAI(api_key="unused", webhook_secret=secret)
    event = client.webhooks.unwrap(request.body, request.headers)
    assert (event.type, event.data.id, event.object) == (SUCCEEDED, "ftjob-abc", "event")
    assert request.headers["user-agent"] == "Tunesmith/0.1"
    assert request.headers["content-type"] == "application/json"
    [delivery] = rows(allowing)
    assert request.headers["webhook-id"] == delivery.id
    assert (delivery.status, delivery.status_code) == ("delivered", 200)

    def signed_at(moment: float) -> dict[str, str]:
        return deliveries.Message(delivery.id, receiver.url, secret, request.body).headers(int(moment))

    client.webhooks.unwrap(request.body, signed_at(clock.now()))
    for body, headers in (
        (request.body.replace(b"ftjob-abc", b"ftjob-abd"), request.headers),
        (request.body, {**request.headers, "webhook-id": "wh_0"}),
        (request.body, signed_at(clock.now() - 400)),
        (request.body, signed_at(clock.now() + 400)),
    ):
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(body, headers)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(request.body, request.headers, secret=webhooks.new_secret())


def test_a_failing_receiver_gets_it_later(allowing: Context, receiver: Receiver) -> None:
    """Twice 500, then 200: three attempts under one id with one body, and no fourth."""
    receiver.statuses = [500, 500, 200]
    subscribe(allowing, receiver.url)
    succeed(allowing, "ftjob-abc")
    for _ in range(5):
        deliver_due(allowing, limit=10)
        make_due(allowing)
    assert len(receiver.received) == 3
    assert len({(request.headers["webhook-id"], request.body) for request in receiver.received}) == 1
    [delivery] = rows(allowing)
    assert (delivery.status, delivery.attempts, delivery.error) == ("delivered", 3, None)


def test_a_pause_is_kept(allowing: Context, receiver: Receiver) -> None:
    """What asked for an hour is not tried again at once."""
    receiver.statuses, receiver.headers = [503], {"Retry-After": "3600"}
    subscribe(allowing, receiver.url)
    succeed(allowing, "ftjob-abc")
    assert [deliver_due(allowing, limit=10) for _ in range(3)] == [1, 0, 0]
    assert len(receiver.received) == 1


def test_an_endpoint_that_is_gone_is_left_alone(allowing: Context, receiver: Receiver) -> None:
    """After a 410 nothing more is sent, not even what came later."""
    receiver.statuses = [410]
    endpoint_id, _ = subscribe(allowing, receiver.url)
    succeed(allowing, "ftjob-a")
    deliver_due(allowing, limit=10)
    succeed(allowing, "ftjob-b")
    make_due(allowing)
    assert deliver_due(allowing, limit=10) == 0
    with allowing.db.reading() as session:
        assert session.get_one(WebhookEndpoint, endpoint_id).disabled_reason is not None
    assert [row.status for row in rows(allowing)] == ["failed"]


def test_a_dead_receiver_holds_up_nobody(allowing: Context, receiver: Receiver) -> None:
    """A refused connection is a failed attempt, and the neighbour has all of its deliveries."""
    with listening() as closed:
        dead_url = closed.url
    dead_id, _ = subscribe(allowing, dead_url)
    subscribe(allowing, receiver.url)
    for number in range(3):
        succeed(allowing, f"ftjob-{number}")
    assert deliver_due(allowing, limit=20) == 6
    assert len(receiver.received) == 3
    dead = [row for row in rows(allowing) if row.endpoint_id == dead_id]
    assert [(row.status, row.attempts, row.status_code) for row in dead] == [("pending", 1, None)] * 3
    assert dead[0].error == "No answer: the connection was refused."


def test_private_addresses_are_refused_at_delivery(allowing: Context, receiver: Receiver) -> None:
    """An endpoint saved while loopback was allowed is not served once it isn't."""
    subscribe(allowing, receiver.url)
    succeed(allowing, "ftjob-abc")
    strict = Context.build(Settings(data=allowing.settings.root))
    assert deliver_due(strict, limit=10) == 1
    strict.db.dispose()
    assert receiver.received == []
    [delivery] = rows(allowing)
    assert (delivery.status, delivery.attempts) == ("pending", 1)


def test_limit_is_kept(allowing: Context, receiver: Receiver) -> None:
    """No more than `limit` are attempted; the rest stay due."""
    subscribe(allowing, receiver.url)
    for number in range(5):
        succeed(allowing, f"ftjob-{number}")
    assert deliver_due(allowing, limit=2) == 2
    assert deliver_due(allowing, limit=10) == 3
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 5


CRASH = """
import os, sys
from app.core.context import Context
from app.core.settings import Settings
from app.services import deliveries
from worker.delivery import deliver_due

deliveries.record_attempt = lambda *a, **k: os.kill(os.getpid(), 9)
deliver_due(Context.build(Settings(data=sys.argv[1], webhook_allow="127.0.0.1")), limit=1)
"""


def test_a_killed_dispatcher_loses_nothing(allowing: Context, receiver: Receiver) -> None:
    """Killed between post and record, the delivery goes again after its lease, under the same id."""
    subscribe(allowing, receiver.url)
    succeed(allowing, "ftjob-abc")
    root = Path(__file__).parents[2]
    done = run([sys.executable, "-c", CRASH, str(allowing.settings.root)], cwd=root, check=False)
    assert done.returncode == -9 and len(receiver.received) == 1
    assert deliver_due(allowing, limit=10) == 0
    make_due(allowing)
    assert deliver_due(allowing, limit=10) == 1
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"] and first.body == second.body
    [delivery] = rows(allowing)
    assert (delivery.status, delivery.attempts) == ("delivered", 1)
