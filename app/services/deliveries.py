"""How a webhook travels: claimed under a lease, signed, tried on a schedule, each answer recorded once.

At least once, in no promised order, one at a time per endpoint. The post itself happens outside any
transaction, in worker/delivery.py, which calls this; the dashboard lists deliveries.

Source: Standard Webhooks (https://www.standardwebhooks.com); reliability.md §4.
"""

import base64
import hmac
import json
import random
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Exists, exists, select, update
from sqlalchemy.orm import Session, aliased

from app.core import clock
from app.core.clock import seconds
from app.core.db import database_now
from app.core.ids import new_id
from app.core.outbound import Answer
from app.core.page import Page, read_page
from app.core.tables import Delivery, Webhook, WebhookEndpoint
from app.services.webhooks import EventType, disable_endpoint, new_delivery_id

# Longer than any attempt can take (outbound.TOTAL_SECONDS), so that a lease that ran out means a crash.
LEASE_SECONDS = 60.0
# The pause before each attempt: 75.6 hours in all. OpenAI retries for up to 72.
SCHEDULE = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
JITTER = 0.2
LONGEST_PAUSE = SCHEDULE[-1]
_ASKS_TO_WAIT = frozenset({429, 502, 503, 504})
USER_AGENT = "Tunesmith/0.1"


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent: the id that stays the same at every attempt, where to, and the exact bytes."""

    id: str
    url: str
    secret: str
    body: bytes
    # Signs too, so that a receiver that still has it goes on working while it changes over.
    old_secret: str | None = None

    def headers(self, timestamp: int) -> dict[str, str]:
        """Return the headers of an attempt made at `timestamp`, which they sign."""
        secrets = [secret for secret in (self.secret, self.old_secret) if secret is not None]
        signatures = " ".join(sign(secret, self.id, timestamp, self.body) for secret in secrets)
        return {
            "content-type": "application/json",
            "user-agent": USER_AGENT,
            "webhook-id": self.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signatures,
        }


@dataclass(frozen=True, slots=True)
class Claim:
    """A delivery to attempt now, and the token that fences its record."""

    message: Message
    endpoint_id: str
    token: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that got no answer, and why. Units: seconds."""

    message: str
    latency: float


def claim_delivery(session: Session, *, lease_seconds: float = LEASE_SECONDS) -> Claim | None:
    """Lease the delivery that has been due longest, of an endpoint with none in flight; None when none is."""
    # The endpoint's row is locked in a statement of its own: the next statement then sees what another
    # claimer committed meanwhile, which a lock taken within it would not.
    endpoint = session.scalars(
        select(WebhookEndpoint)
        .join(Delivery, Delivery.endpoint_id == WebhookEndpoint.id)
        .where(*_due(), WebhookEndpoint.disabled_reason.is_(None), ~_in_flight(WebhookEndpoint.id))
        .order_by(Delivery.next_attempt_at, Delivery.id)
        .limit(1)
        .with_for_update(of=WebhookEndpoint, skip_locked=True, key_share=True)
        .execution_options(populate_existing=True)
    ).one_or_none()
    if endpoint is None:
        return None
    first = (
        select(Delivery.id)
        .where(Delivery.endpoint_id == endpoint.id, *_due())
        .order_by(Delivery.next_attempt_at, Delivery.id)
        .limit(1)
    )
    row = session.execute(
        update(Delivery)
        .where(Delivery.id == first.scalar_subquery(), *_due(), ~_in_flight(endpoint.id))
        .values(lease_token=Delivery.lease_token + 1, lease_expires_at=database_now() + lease_seconds)
        .returning(Delivery.id, Delivery.lease_token, Delivery.attempts, Delivery.webhook_id),
        execution_options={"synchronize_session": False},
    ).one_or_none()
    if row is None:
        return None
    body = event_body(session.get_one(Webhook, row.webhook_id))
    message = Message(row.id, endpoint.url, endpoint.secret, body, _old_secret(endpoint))
    return Claim(message, endpoint.id, row.lease_token, row.attempts + 1)


def record_attempt(session: Session, *, claim: Claim, outcome: Answer | Failure) -> bool:
    """Write how an attempt ended and when the next is due; False when the lease was lost meanwhile."""
    status_code = outcome.status_code if isinstance(outcome, Answer) else None
    recorded = session.scalar(
        update(Delivery)
        .where(
            Delivery.id == claim.message.id, Delivery.lease_token == claim.token, Delivery.status == "pending"
        )
        .values(
            attempts=claim.attempt,
            lease_expires_at=None,
            latency=outcome.latency,
            status_code=status_code,
            error=_problem(outcome),
            **_next(claim.attempt, outcome),
        )
        .returning(Delivery.id),
        execution_options={"synchronize_session": False},
    )
    if recorded is not None and status_code == 410:
        disable_endpoint(session, endpoint_id=claim.endpoint_id, reason="The endpoint answered 410 Gone.")
    return recorded is not None


def list_deliveries(
    session: Session, *, endpoint_id: str, limit: int = 20, after: str | None = None
) -> Page[Delivery]:
    """Return a page of an endpoint's deliveries, newest first."""
    return read_page(
        session,
        select(Delivery).where(Delivery.endpoint_id == endpoint_id),
        keys=[Delivery.created_at, Delivery.id],
        id_column=Delivery.id,
        limit=limit,
        after=after,
    )


def pause_before(attempt: int, *, retry_after: float | None = None, jitter: float | None = None) -> float:
    """Return the seconds to wait before an attempt, counted from 1; never less than the endpoint asked for.

    `jitter` in [-1, 1] spreads the pause by 20 %; drawn when not given.
    """
    spread = random.uniform(-1, 1) if jitter is None else jitter
    return max(SCHEDULE[attempt - 1] * (1 + JITTER * spread), min(retry_after or 0.0, LONGEST_PAUSE))


def sample(endpoint: WebhookEndpoint, *, type: EventType) -> Message:
    """Return a message like a real one, about a job that doesn't exist; nothing is stored."""
    webhook = Webhook(id=new_id("webhook_event"), type=type, object_id=new_id("job"), created_at=clock.now())
    body = event_body(webhook)
    return Message(new_delivery_id(), endpoint.url, endpoint.secret, body, _old_secret(endpoint))


def event_body(webhook: Webhook) -> bytes:
    """Return the exact bytes that are signed and sent, the same at every attempt."""
    event = {
        "id": webhook.id,
        "object": "event",
        "created_at": seconds(webhook.created_at),
        "type": webhook.type,
        "data": {"id": webhook.object_id},
    }
    return json.dumps(event, separators=(",", ":")).encode()


def sign(secret: str, delivery_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature: base64(HMAC-SHA256(key, "id.timestamp.body")), its version before it.

    Source: Standard Webhooks, "Signature scheme".
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def _old_secret(endpoint: WebhookEndpoint) -> str | None:
    until = endpoint.old_secret_until
    return endpoint.old_secret if until is not None and until > clock.now() else None


def _due() -> tuple[ColumnElement[bool], ...]:
    is_free = Delivery.lease_expires_at.is_(None) | (Delivery.lease_expires_at < database_now())
    return Delivery.status == "pending", Delivery.next_attempt_at <= database_now(), is_free


def _in_flight(endpoint_id: object) -> Exists:
    other = aliased(Delivery)
    return exists().where(
        other.endpoint_id == endpoint_id,
        other.status == "pending",
        other.lease_expires_at >= database_now(),
    )


def _next(attempt: int, outcome: Answer | Failure) -> dict[str, Any]:
    status = outcome.status_code if isinstance(outcome, Answer) else None
    if status is not None and 200 <= status < 300:
        return {"status": "delivered", "delivered_at": database_now()}
    if status == 410 or attempt >= len(SCHEDULE):
        return {"status": "failed"}
    asked = outcome.retry_after if isinstance(outcome, Answer) and status in _ASKS_TO_WAIT else None
    return {"next_attempt_at": database_now() + pause_before(attempt + 1, retry_after=asked)}


def _problem(outcome: Answer | Failure) -> str | None:
    if isinstance(outcome, Failure):
        return outcome.message
    if 200 <= outcome.status_code < 300:
        return None
    return f"The endpoint answered {outcome.status_code}. {outcome.excerpt}".strip()
