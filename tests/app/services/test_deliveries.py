"""Claims, records and the schedule of deliveries, on both databases; signatures by the reference library."""

import base64
import hashlib
import hmac
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update
from standardwebhooks import Webhook as Reference
from standardwebhooks import WebhookVerificationError

from app.core import clock
from app.core.db import Database
from app.core.outbound import Answer
from app.core.settings import Settings
from app.core.tables import Delivery, Project, Webhook, WebhookEndpoint
from app.services import deliveries, webhooks
from app.services.deliveries import SCHEDULE, Claim, Failure, pause_before

SUCCEEDED, FAILED, _ = webhooks.EVENT_TYPES


@pytest.fixture
def endpoints(database: Database, settings: Settings) -> list[str]:
    """Two endpoints of one project that want successes, oldest first."""
    with database.transaction() as session:
        session.add(Project(id="proj_a", name="a", created_at=1.0))
        session.flush()
        return [
            webhooks.create_endpoint(
                session,
                settings=settings,
                project_id="proj_a",
                name=name,
                url=f"https://{name}.example.com/",
                event_types=[SUCCEEDED],
            )[0].id
            for name in ("one", "two")
        ]


def emit(database: Database, count: int = 1, prefix: str = "ftjob-") -> None:
    """Let `count` jobs succeed."""
    for number in range(count):
        with database.transaction() as session:
            webhooks.emit(session, project_id="proj_a", type=SUCCEEDED, object_id=f"{prefix}{number}")


def claim(database: Database, lease_seconds: float = 60.0) -> Claim | None:
    """Claim in a transaction of its own."""
    with database.transaction() as session:
        return deliveries.claim_delivery(session, lease_seconds=lease_seconds)


def must_claim(database: Database, lease_seconds: float = 60.0) -> Claim:
    """Claim what must be there."""
    found = claim(database, lease_seconds)
    assert found is not None
    return found


def record(database: Database, claimed: Claim, outcome: Answer | Failure) -> bool:
    """Record in a transaction of its own."""
    with database.transaction() as session:
        return deliveries.record_attempt(session, claim=claimed, outcome=outcome)


def answered(status_code: int, retry_after: float | None = None) -> Answer:
    """Return an answer with this status."""
    return Answer(status_code, 0.25, "its body", retry_after)


def row(database: Database, claimed: Claim) -> Delivery:
    """Read a delivery."""
    with database.reading() as session:
        return session.get_one(Delivery, claimed.message.id)


def make_due(database: Database) -> None:
    """Let every pause be over."""
    with database.transaction() as session:
        session.execute(update(Delivery).values(next_attempt_at=0.0))


def test_one_delivery_at_a_time_per_endpoint(database: Database, endpoints: list[str]) -> None:
    """Two endpoints are served side by side, each in single file."""
    emit(database, 3)
    first, second = must_claim(database), must_claim(database)
    assert {first.endpoint_id, second.endpoint_id} == set(endpoints)
    assert claim(database) is None
    assert record(database, first, answered(200))
    third = must_claim(database)
    assert third.endpoint_id == first.endpoint_id and third.message.id != first.message.id
    assert claim(database) is None


def test_racing_claimers_never_share(database: Database, endpoints: list[str]) -> None:
    """Eight claimers at once over two endpoints: at most one delivery of each is out, none out twice."""
    emit(database, 10)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            found = [c for c in pool.map(lambda _: claim(database), range(8)) if c is not None]
            places = [c.endpoint_id for c in found]
            assert len(places) == len(set(places)) and places
            for one in found:
                assert record(database, one, answered(200))


def test_success_is_final(database: Database, endpoints: list[str]) -> None:
    """A 2xx ends it, with the answer noted."""
    emit(database)
    claimed = must_claim(database)
    assert claimed.attempt == 1
    assert record(database, claimed, answered(204))
    delivery = row(database, claimed)
    assert (delivery.status, delivery.status_code, delivery.attempts) == ("delivered", 204, 1)
    assert (delivery.latency, delivery.error, delivery.lease_expires_at) == (0.25, None, None)
    assert delivery.delivered_at is not None and abs(delivery.delivered_at - clock.now()) < 60
    assert not record(database, claimed, answered(500))


@pytest.mark.parametrize(
    "outcome", [answered(500), answered(302), answered(404), Failure("No answer.", 15.0)]
)
def test_failure_is_tried_again_later(
    database: Database, endpoints: list[str], outcome: Answer | Failure
) -> None:
    """Anything but a 2xx waits for its next turn, about five seconds after the first."""
    emit(database)
    claimed = must_claim(database)
    before = clock.now()
    record(database, claimed, outcome)
    after = clock.now()
    delivery = row(database, claimed)
    assert (delivery.status, delivery.attempts, delivery.lease_expires_at) == ("pending", 1, None)
    assert delivery.error is not None and "answer" in delivery.error
    # The database's clock has a grain of its own.
    assert before + 4 - 0.1 <= delivery.next_attempt_at <= after + 6 + 0.1


def test_the_last_failure_ends_it(database: Database, endpoints: list[str], settings: Settings) -> None:
    """Ten attempts under one id, then the delivery has failed."""
    with database.transaction() as session:
        webhooks.delete_endpoint(session, project_id="proj_a", endpoint_id=endpoints[1])
    emit(database)
    seen = set()
    for attempt in range(1, len(SCHEDULE) + 1):
        claimed = must_claim(database)
        assert claimed.attempt == attempt
        seen.add((claimed.message.id, claimed.message.body))
        record(database, claimed, answered(500))
        make_due(database)
    assert len(seen) == 1
    assert claim(database) is None
    delivery = row(database, claimed)
    assert (delivery.status, delivery.attempts) == ("failed", 10)
    assert delivery.error == "The endpoint answered 500. its body"


def test_gone_disables_the_endpoint(database: Database, endpoints: list[str]) -> None:
    """410 ends this delivery and every other of the endpoint, and no other endpoint's."""
    emit(database, 2)
    claimed = must_claim(database)
    assert record(database, claimed, answered(410))
    with database.reading() as session:
        reasons = {row.id: row.disabled_reason for row in session.scalars(select(WebhookEndpoint))}
        statuses = {(row.endpoint_id, row.status) for row in session.scalars(select(Delivery))}
    other = next(iter(set(endpoints) - {claimed.endpoint_id}))
    assert reasons == {claimed.endpoint_id: "The endpoint answered 410 Gone.", other: None}
    assert statuses == {(claimed.endpoint_id, "failed"), (other, "pending")}
    assert row(database, claimed).error == "The endpoint answered 410. its body"


def test_a_crash_is_made_good(database: Database, endpoints: list[str]) -> None:
    """A lease that ran out is claimed again under the same id, and the old holder can record nothing."""
    emit(database)
    lost, kept = must_claim(database, lease_seconds=-1.0), must_claim(database)
    again = kept if kept.message.id == lost.message.id else must_claim(database)
    assert (again.message.id, again.message.body) == (lost.message.id, lost.message.body)
    assert again.token == lost.token + 1 and again.attempt == lost.attempt
    assert not record(database, lost, answered(200))
    assert record(database, again, answered(200))


def test_the_schedule_covers_three_days() -> None:
    """Ten attempts over 75.6 hours, each pause spread by a fifth, never beneath what was asked for."""
    assert round(sum(SCHEDULE) / 3600, 1) == 75.6
    assert pause_before(1, jitter=1.0) == 0.0
    assert pause_before(3, jitter=-1.0) == 240.0
    assert pause_before(3, jitter=1.0) == 360.0
    assert pause_before(2, retry_after=90.0, jitter=0.0) == 90.0
    assert pause_before(3, retry_after=90.0, jitter=0.0) == 300.0
    assert pause_before(2, retry_after=1e9, jitter=0.0) == 86400.0
    drawn = [pause_before(2) for _ in range(200)]
    assert 4.0 <= min(drawn) < max(drawn) <= 6.0


@pytest.mark.parametrize(("status", "is_heard"), [(429, True), (503, True), (500, False), (301, False)])
def test_retry_after_is_heard_where_it_means_something(
    database: Database, endpoints: list[str], status: int, is_heard: bool
) -> None:
    """429, 502, 503 and 504 may ask to wait."""
    emit(database)
    claimed = must_claim(database)
    record(database, claimed, answered(status, retry_after=1000.0))
    assert (row(database, claimed).next_attempt_at > clock.now() + 500) == is_heard


def test_the_body_is_openais(database: Database, endpoints: list[str]) -> None:
    """Exactly the thin form, compact, in its order."""
    emit(database)
    body = must_claim(database).message.body
    event = json.loads(body)
    assert list(event) == ["id", "object", "created_at", "type", "data"]
    assert event["id"].startswith("evt_") and isinstance(event["created_at"], int)
    assert (event["object"], event["type"], event["data"]) == ("event", SUCCEEDED, {"id": "ftjob-0"})
    assert json.dumps(event, separators=(",", ":")).encode() == body


def test_the_reference_library_accepts_the_signature(database: Database, endpoints: list[str]) -> None:
    """And refuses another id, another body and another secret."""
    emit(database)
    message = must_claim(database).message
    headers = message.headers(int(clock.now()))
    Reference(message.secret).verify(message.body, headers)
    assert headers["user-agent"] == "Tunesmith/0.1" and headers["content-type"] == "application/json"
    for secret, body, changed in (
        (message.secret, message.body + b" ", headers),
        (message.secret, message.body, {**headers, "webhook-id": "wh_other"}),
        (webhooks.new_secret(), message.body, headers),
        (message.secret, message.body, message.headers(int(clock.now()) - 301)),
    ):
        with pytest.raises(WebhookVerificationError):
            Reference(secret).verify(body, changed)


def test_the_signature_is_hand_worked() -> None:
    """The key is the decoded secret, the text `id.timestamp.body`."""
    secret = "whsec_" + base64.b64encode(bytes(range(32))).decode()
    expected = hmac.new(bytes(range(32)), b'wh_1.1700000000.{"a":1}', hashlib.sha256).digest()
    signature = deliveries.sign(secret, "wh_1", 1_700_000_000, b'{"a":1}')
    assert signature == "v1," + base64.b64encode(expected).decode()


def test_oldest_due_goes_first(database: Database, endpoints: list[str]) -> None:
    """Deliveries of one endpoint leave in the order they became due."""
    with database.transaction() as session:
        webhooks.delete_endpoint(session, project_id="proj_a", endpoint_id=endpoints[1])
    emit(database, 3)
    due = [3.0, 1.0, 2.0]
    with database.transaction() as session:
        for delivery in session.scalars(select(Delivery)):
            webhook = session.get_one(Webhook, delivery.webhook_id)
            delivery.next_attempt_at = due[int(webhook.object_id.removeprefix("ftjob-"))]
    order = []
    for _ in due:
        claimed = must_claim(database)
        order.append(json.loads(claimed.message.body)["data"]["id"])
        record(database, claimed, answered(200))
    assert order == ["ftjob-1", "ftjob-2", "ftjob-0"]
