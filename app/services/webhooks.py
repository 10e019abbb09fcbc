"""Webhooks: endpoints, and the outbox that tells them what happened to a job.

`emit` writes in the transaction in which it happened, so neither exists without the other. How a
delivery then travels (claim, signature, schedule) stands in deliveries.py.
Called by both faces and by services that end a job.

Source: OpenAI's webhook endpoints (wire.md §8); Standard Webhooks (the secret's form).
"""

import base64
import secrets
from collections.abc import Sequence
from typing import Any, Literal, get_args

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.core import clock
from app.core.db import database_now
from app.core.errors import InvalidRequest, NotFound
from app.core.ids import PREFIXES, new_id, random_hex
from app.core.outbound import check_url
from app.core.page import Page, read_page
from app.core.queue import DELIVER, nudge
from app.core.settings import Settings
from app.core.tables import Delivery, Webhook, WebhookEndpoint

EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
OLD_SECRET_SECONDS = 24 * 3_600.0
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)


def new_secret() -> str:
    """Return a fresh signing secret: 32 random bytes in the form Standard Webhooks gives them."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def create_endpoint(
    session: Session, *, settings: Settings, project_id: str, name: str, url: str, event_types: Sequence[str]
) -> tuple[WebhookEndpoint, str]:
    """Insert an endpoint and return it with its signing secret. Raises: InvalidRequest."""
    now = clock.now()
    endpoint = WebhookEndpoint(
        id=new_id("webhook"),
        project_id=project_id,
        name=_checked_name(name),
        url=_checked_url(settings, url),
        event_types=_checked_types(event_types),
        secret=new_secret(),
        created_at=now,
        updated_at=now,
    )
    session.add(endpoint)
    session.flush()
    return endpoint, endpoint.secret


def get_endpoint(session: Session, *, project_id: str, endpoint_id: str) -> WebhookEndpoint:
    """Return one of the project's endpoints. Raises: NotFound."""
    query = select(WebhookEndpoint).where(
        WebhookEndpoint.project_id == project_id, WebhookEndpoint.id == endpoint_id
    )
    endpoint = session.scalars(query).one_or_none()
    if endpoint is None:
        raise NotFound(f"No such webhook endpoint: {endpoint_id}", param="webhook_endpoint_id")
    return endpoint


def list_endpoints(
    session: Session, *, project_id: str, limit: int = 20, after: str | None = None
) -> Page[WebhookEndpoint]:
    """Return a page of the project's endpoints, newest first."""
    return read_page(
        session,
        select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id),
        keys=[WebhookEndpoint.created_at, WebhookEndpoint.id],
        id_column=WebhookEndpoint.id,
        limit=limit,
        after=after,
    )


def update_endpoint(
    session: Session,
    *,
    settings: Settings,
    project_id: str,
    endpoint_id: str,
    name: str | None = None,
    url: str | None = None,
    event_types: Sequence[str] | None = None,
) -> WebhookEndpoint:
    """Change what is given, and enable an endpoint that was disabled. Raises: NotFound, InvalidRequest."""
    endpoint = get_endpoint(session, project_id=project_id, endpoint_id=endpoint_id)
    changes: dict[str, Any] = {"disabled_reason": None}
    if name is not None:
        changes["name"] = _checked_name(name)
    if url is not None:
        changes["url"] = _checked_url(settings, url)
    if event_types is not None:
        changes["event_types"] = _checked_types(event_types)
    if any(getattr(endpoint, field) != value for field, value in changes.items()):
        for field, value in changes.items():
            setattr(endpoint, field, value)
        endpoint.updated_at = clock.now()
        session.flush()
    return endpoint


def rotate_secret(
    session: Session, *, project_id: str, endpoint_id: str, keep_old: bool = False
) -> tuple[WebhookEndpoint, str]:
    """Give the endpoint a new secret; the old one signs nothing from now on, or for a day more.

    Raises: NotFound.
    """
    endpoint = get_endpoint(session, project_id=project_id, endpoint_id=endpoint_id)
    now = clock.now()
    # Without `keep_old` one that was kept by an earlier rotation ends too: it may be the one that leaked.
    endpoint.old_secret = endpoint.secret if keep_old else None
    endpoint.old_secret_until = now + OLD_SECRET_SECONDS if keep_old else None
    endpoint.secret = new_secret()
    endpoint.updated_at = now
    session.flush()
    return endpoint, endpoint.secret


def delete_endpoint(session: Session, *, project_id: str, endpoint_id: str) -> None:
    """Remove the endpoint with its deliveries; what is on its way still arrives. Raises: NotFound."""
    session.delete(get_endpoint(session, project_id=project_id, endpoint_id=endpoint_id))
    session.flush()


def disable_endpoint(session: Session, *, endpoint_id: str, reason: str) -> None:
    """Send nothing more to the endpoint, and give up what was still to be sent."""
    pending = Delivery.endpoint_id == endpoint_id, Delivery.status == "pending"
    session.execute(
        update(Delivery)
        .where(*pending)
        .values(status="failed", error=f"Not sent: {reason}", lease_expires_at=None)
    )
    session.execute(
        update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).values(disabled_reason=reason)
    )


def emit(session: Session, *, project_id: str, type: EventType, object_id: str) -> Webhook:
    """Write what happened, with one delivery to every enabled endpoint that asked for it."""
    webhook = Webhook(
        id=new_id("webhook_event"),
        project_id=project_id,
        object_id=object_id,
        type=type,
        created_at=clock.now(),
    )
    session.add(webhook)
    session.flush()
    # Locked against deletion: an endpoint that went away now would fail the caller's own transaction.
    enabled = (
        select(WebhookEndpoint)
        .where(WebhookEndpoint.project_id == project_id, WebhookEndpoint.disabled_reason.is_(None))
        .with_for_update(read=True, key_share=True)
    )
    interested = [endpoint for endpoint in session.scalars(enabled) if type in endpoint.event_types]
    session.add_all(
        Delivery(
            id=new_delivery_id(),
            webhook_id=webhook.id,
            endpoint_id=endpoint.id,
            status="pending",
            next_attempt_at=database_now(),
            created_at=webhook.created_at,
        )
        for endpoint in interested
    )
    session.flush()
    if interested:
        nudge(session, DELIVER)
    return webhook


def checked_type(text: str, *, param: str = "event_type") -> EventType:
    """Return the event type if there is such a one. Raises: InvalidRequest."""
    for event_type in EVENT_TYPES:
        if event_type == text:
            return event_type
    raise InvalidRequest(
        f"Invalid value: '{text[:100]}'. Supported values are: {', '.join(EVENT_TYPES)}.",
        param=param,
        code="invalid_value",
    )


def new_delivery_id() -> str:
    """Return a fresh `webhook-id`: hexadecimal, as OpenAI's are."""
    return PREFIXES["delivery"] + random_hex(32)


def _checked_name(name: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= 255 or not name.isprintable():
        raise InvalidRequest("An endpoint's name has 1 to 255 printable characters.", param="name")
    return name


def _checked_url(settings: Settings, url: str) -> str:
    check_url(url, allow=settings.listed(settings.webhook_allow))
    return url


def _checked_types(event_types: Sequence[str]) -> list[str]:
    if not event_types:
        raise InvalidRequest("Choose at least one event type.", param="event_types")
    return list(dict.fromkeys(checked_type(event_type, param="event_types") for event_type in event_types))
