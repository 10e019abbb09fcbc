"""The routes of webhook endpoints, included by app/api/routes.py.

Nothing waits for the network inside a transaction: names are resolved before the session's first
statement, a test is sent after its session has closed.
"""

from fastapi import APIRouter

from app.api.bodies import read_body
from app.api.deps import ByCaller, InContext, InSession, JsonObject, Limit
from app.api.schemas import webhooks as schemas
from app.api.schemas.lists import Catalogue, ListedWithEnds, catalogue, listed_with_ends
from app.core import clock, outbound
from app.core.context import Context
from app.services import deliveries, webhooks

router = APIRouter()


@router.post("/webhook_endpoints")
def create_endpoint(
    context: InContext, caller: ByCaller, session: InSession, document: JsonObject
) -> schemas.EndpointWithSecret:
    """Create an endpoint; its secret is shown in this answer only."""
    body = read_body(schemas.NewEndpoint, document)
    outbound.check_name(body.url, allow=_allowed(context))
    endpoint, secret = webhooks.create_endpoint(
        session,
        settings=context.settings,
        project_id=caller.project_id,
        name=body.name,
        url=body.url,
        event_types=body.event_types,
    )
    return schemas.endpoint_with_secret(endpoint, secret)


@router.get("/webhook_endpoints")
def list_endpoints(
    caller: ByCaller, session: InSession, limit: Limit = 20, after: str | None = None
) -> ListedWithEnds[schemas.EndpointObject]:
    """List the project's endpoints, newest first."""
    page = webhooks.list_endpoints(session, project_id=caller.project_id, limit=limit, after=after)
    return listed_with_ends(page, schemas.endpoint_object)


@router.get("/webhook_event_types")
def list_event_types() -> Catalogue[str]:
    """List what an endpoint may ask for."""
    return catalogue(webhooks.EVENT_TYPES, str)


@router.get("/webhook_endpoints/{endpoint_id}")
def retrieve_endpoint(caller: ByCaller, session: InSession, endpoint_id: str) -> schemas.EndpointObject:
    """Return one endpoint, without its secret."""
    endpoint = webhooks.get_endpoint(session, project_id=caller.project_id, endpoint_id=endpoint_id)
    return schemas.endpoint_object(endpoint)


@router.post("/webhook_endpoints/{endpoint_id}")
def update_endpoint(
    context: InContext, caller: ByCaller, session: InSession, endpoint_id: str, document: JsonObject
) -> schemas.EndpointObject:
    """Change an endpoint; a disabled one is enabled by it."""
    body = read_body(schemas.ChangedEndpoint, document)
    if body.url is not None:
        outbound.check_name(body.url, allow=_allowed(context))
    endpoint = webhooks.update_endpoint(
        session,
        settings=context.settings,
        project_id=caller.project_id,
        endpoint_id=endpoint_id,
        name=body.name,
        url=body.url,
        event_types=body.event_types,
    )
    return schemas.endpoint_object(endpoint)


@router.delete("/webhook_endpoints/{endpoint_id}")
def delete_endpoint(caller: ByCaller, session: InSession, endpoint_id: str) -> schemas.DeletedEndpoint:
    """Delete an endpoint with its deliveries."""
    webhooks.delete_endpoint(session, project_id=caller.project_id, endpoint_id=endpoint_id)
    return schemas.DeletedEndpoint(id=endpoint_id)


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret")
def rotate_secret(
    caller: ByCaller, session: InSession, endpoint_id: str, document: JsonObject
) -> schemas.EndpointWithSecret:
    """Replace an endpoint's secret; the new one is shown in this answer only."""
    keep_old = read_body(schemas.Rotation, document).keep_old_secret
    endpoint, secret = webhooks.rotate_secret(
        session, project_id=caller.project_id, endpoint_id=endpoint_id, keep_old=bool(keep_old)
    )
    return schemas.endpoint_with_secret(endpoint, secret)


@router.post("/webhook_endpoints/{endpoint_id}/test")
def test_endpoint(
    context: InContext, caller: ByCaller, endpoint_id: str, document: JsonObject
) -> schemas.TrialResult:
    """Send a sample event now and return the endpoint's status code; a failed connection is a 400."""
    event_type = webhooks.checked_type(read_body(schemas.Trial, document).event_type)
    with context.db.reading() as session:
        endpoint = webhooks.get_endpoint(session, project_id=caller.project_id, endpoint_id=endpoint_id)
    message = deliveries.sample(endpoint, type=event_type)
    headers = message.headers(clock.seconds(clock.now()))
    answer = outbound.post(message.url, message.body, headers, allow=_allowed(context))
    return schemas.TrialResult(
        webhook_endpoint_id=endpoint_id, event_type=event_type, status_code=answer.status_code
    )


def _allowed(context: Context) -> tuple[str, ...]:
    return context.settings.listed(context.settings.webhook_allow)
