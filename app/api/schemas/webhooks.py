"""The shapes of webhook endpoints on the wire. Their meaning is judged in services/webhooks.py.

Source: OpenAI's `/webhook_endpoints` (wire.md §8).
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.api.handlers import invalid_parameter
from app.core.clock import seconds
from app.core.tables import WebhookEndpoint

Body = TypeVar("Body", bound=BaseModel)


class NewEndpoint(BaseModel):
    """The body of a create request."""

    model_config = ConfigDict(strict=True)

    name: str
    url: str
    event_types: list[str]


class ChangedEndpoint(BaseModel):
    """The body of an update request: what is absent or null stays as it is."""

    model_config = ConfigDict(strict=True)

    name: str | None = None
    url: str | None = None
    event_types: list[str] | None = None


class Rotation(BaseModel):
    """The body of a rotation."""

    model_config = ConfigDict(strict=True)

    keep_old_secret: bool = Field(default=False, alias="keep_old_secret_active_for_24_hours")


class Trial(BaseModel):
    """The body of a test delivery."""

    model_config = ConfigDict(strict=True)

    event_type: str


def read_body(shape: type[Body], document: Mapping[str, Any]) -> Body:
    """Return the document in its shape. Raises: InvalidRequest that names the first wrong parameter."""
    try:
        return shape.model_validate(document)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise invalid_parameter({**first, "loc": first["loc"][:1]}) from None


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
