"""The shapes of webhook endpoints on the wire. Their meaning is judged in services/webhooks.py.

Source: OpenAI's `/webhook_endpoints` (wire.md §8).
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.api.bodies import Shape
from app.core.clock import seconds
from app.core.tables import WebhookEndpoint


class NewEndpoint(Shape):
    """The body of a create request."""

    name: str
    url: str
    event_types: list[str]


class ChangedEndpoint(Shape):
    """The body of an update request: what is absent or null stays as it is."""

    name: str | None = None
    url: str | None = None
    event_types: list[str] | None = None


class Rotation(Shape):
    """The body of a rotation."""

    keep_old_secret: bool | None = Field(default=None, alias="keep_old_secret_active_for_24_hours")


class Trial(Shape):
    """The body of a test delivery."""

    event_type: str


class EndpointObject(BaseModel):
    """An endpoint as its owner sees it."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int
    signing_secret_hint: str


class EndpointWithSecret(EndpointObject):
    """An endpoint in the one answer that shows its secret."""

    signing_secret: str


class DeletedEndpoint(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class TrialResult(BaseModel):
    """The answer to a test. `success` says that the endpoint answered; `status_code` says what."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


def endpoint_object(endpoint: WebhookEndpoint) -> EndpointObject:
    """Return an endpoint as it stands on the wire."""
    return EndpointObject.model_validate(_fields(endpoint))


def endpoint_with_secret(endpoint: WebhookEndpoint, secret: str) -> EndpointWithSecret:
    """Return an endpoint with the secret that was just made."""
    return EndpointWithSecret.model_validate({**_fields(endpoint), "signing_secret": secret})


def _fields(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "created_at": seconds(endpoint.created_at),
        "updated_at": seconds(endpoint.updated_at),
        "signing_secret_hint": endpoint.secret[-4:],
    }
