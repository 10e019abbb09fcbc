"""The webhooks' pages: endpoints, adding one (its secret is shown once), deleting one, its deliveries."""

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app.core import outbound
from app.core.errors import InvalidRequest
from app.core.tables import Delivery, Webhook, WebhookEndpoint
from app.dashboard import format, render
from app.dashboard.contexts import Chip, DeliveryRow, EndpointPage, EndpointRow, Fact, WebhooksPage
from app.dashboard.visitor import Form, Parts, Reading, SignedIn, Visitor, Writing, text
from app.services import deliveries, webhooks

router = APIRouter()
_DELIVERY_CHIPS = {
    "delivered": Chip("delivered", "Delivered", "good", "solid"),
    "failed": Chip("failed", "Failed", "bad", "solid"),
    "pending": Chip("pending", "On its way", "neutral", "hollow"),
}


@router.get("/webhooks")
def show_endpoints(visitor: SignedIn, session: Reading) -> Response:
    """Show the endpoints and the form that adds one."""
    return _list_page(session, visitor, None, {})


@router.post("/webhooks")
def create_endpoint(visitor: SignedIn, form: Form, context: Parts, session: Writing) -> Response:
    """Add an endpoint and show its signing secret, this once."""
    settings, url = context.settings, text(form, "url")
    try:
        # Before the session's first statement: a name server may be slow, and others wait for the lock.
        outbound.check_name(url, allow=settings.listed(settings.webhook_allow))
        endpoint, secret = webhooks.create_endpoint(
            session,
            settings=settings,
            project_id=visitor.project_id,
            name=text(form, "name"),
            url=url,
            event_types=[str(value) for value in form.getlist("event_types")],
        )
    except InvalidRequest as refusal:
        return _list_page(session, visitor, form, {refusal.param or "name": refusal.message})
    return _endpoint_page(session, visitor, endpoint, secret)


@router.get("/webhooks/{endpoint_id}")
def show_endpoint(endpoint_id: str, visitor: SignedIn, session: Reading) -> Response:
    """Show one endpoint with its deliveries."""
    endpoint = webhooks.get_endpoint(session, project_id=visitor.project_id, endpoint_id=endpoint_id)
    return _endpoint_page(session, visitor, endpoint, None)


@router.post("/webhooks/{endpoint_id}/delete")
def delete_endpoint(endpoint_id: str, visitor: SignedIn, _form: Form, session: Writing) -> Response:
    """Remove an endpoint with its deliveries."""
    webhooks.delete_endpoint(session, project_id=visitor.project_id, endpoint_id=endpoint_id)
    return RedirectResponse("/webhooks", status_code=303)


def _list_page(session: Session, visitor: Visitor, form: FormData | None, errors: dict[str, str]) -> Response:
    rows = webhooks.list_endpoints(session, project_id=visitor.project_id, limit=100).rows
    chosen = webhooks.EVENT_TYPES if form is None else tuple(map(str, form.getlist("event_types")))
    page = WebhooksPage(
        frame=visitor.frame(session, title="Webhooks", section="webhooks"),
        rows=tuple(map(_row, rows)),
        event_types=webhooks.EVENT_TYPES,
        values={key: text(form, key) if form else "" for key in ("name", "url")},
        chosen=chosen,
        errors=errors,
    )
    return render.page("webhooks/webhooks.html", page, status=422 if errors else 200)


def _endpoint_page(
    session: Session, visitor: Visitor, endpoint: WebhookEndpoint, secret: str | None
) -> Response:
    sent = deliveries.list_deliveries(session, endpoint_id=endpoint.id, limit=50).rows
    found = session.scalars(select(Webhook).where(Webhook.id.in_([row.webhook_id for row in sent])))
    happened = {webhook.id: webhook for webhook in found}
    page = EndpointPage(
        frame=visitor.frame(session, title=endpoint.name, section="webhooks"),
        endpoint=_row(endpoint),
        hint=f"whsec_…{endpoint.secret[-4:]}",
        facts=(
            Fact("Endpoint ID", endpoint.id, mono=True, copies=True),
            Fact("Created", format.absolute(endpoint.created_at), moment=endpoint.created_at),
        ),
        deliveries=tuple(_delivery(row, happened[row.webhook_id]) for row in sent),
        secret=secret,
    )
    return render.page("webhooks/endpoint.html", page)


def _row(endpoint: WebhookEndpoint) -> EndpointRow:
    if endpoint.disabled_reason:
        chip = Chip("disabled", "Disabled", "bad", "struck")
    else:
        chip = Chip("enabled", "Enabled", "good", "solid")
    return EndpointRow(
        endpoint.id, endpoint.name, endpoint.url, tuple(endpoint.event_types), chip, endpoint.disabled_reason
    )


def _delivery(row: Delivery, webhook: Webhook) -> DeliveryRow:
    return DeliveryRow(
        row.id,
        webhook.type,
        webhook.object_id,
        _DELIVERY_CHIPS[row.status],
        row.attempts,
        row.status_code,
        row.latency,
        row.error,
        row.created_at,
        row.next_attempt_at if row.status == "pending" else None,
    )
