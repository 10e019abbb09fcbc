"""Webhook endpoints through the official client on a running server."""

from collections.abc import Iterator, Mapping

import openai
import pytest

from app.core import clock
from app.core.settings import Settings
from app.services import webhooks
from tests.app.api.server import Server
from tests.receiver import Receiver, listening

SUCCEEDED, FAILED = "fine_tuning.job.succeeded", "fine_tuning.job.failed"
PUBLIC = "https://8.8.8.8/hook"


@pytest.fixture
def api_settings(settings: Settings) -> Settings:
    """Settings whose operator lets webhooks reach loopback."""
    return settings.model_copy(update={"webhook_allow": "127.0.0.1"})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on loopback."""
    with listening() as receiver:
        yield receiver


def test_an_endpoint_lives(client: openai.OpenAI, server: Server) -> None:
    """Create, retrieve, update, rotate, list, delete; the secret is shown where it was made only."""
    made = client.webhooks.create(name="Deploys", url=PUBLIC, event_types=[SUCCEEDED])
    assert made.id.startswith("we_") and made.object == "webhook_endpoint"
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint == made.signing_secret[-4:]
    assert made.created_at == made.updated_at
    read = client.webhooks.retrieve(made.id)
    assert (read.name, read.url, read.event_types) == ("Deploys", PUBLIC, [SUCCEEDED])
    raw = server.raw("GET", f"/v1/webhook_endpoints/{made.id}").json()
    assert set(raw) == {
        "id",
        "object",
        "name",
        "url",
        "event_types",
        "created_at",
        "updated_at",
        "signing_secret_hint",
    }
    changed = client.webhooks.update(made.id, name="Alerts", event_types=[FAILED])
    assert (changed.name, changed.url, changed.event_types) == ("Alerts", PUBLIC, [FAILED])
    rotated = client.webhooks.rotate_secret(made.id)
    assert rotated.signing_secret != made.signing_secret
    assert client.webhooks.retrieve(made.id).signing_secret_hint == rotated.signing_secret[-4:]
    gone = client.webhooks.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "webhook_endpoint.deleted", True)
    for call in (client.webhooks.retrieve, client.webhooks.delete, client.webhooks.rotate_secret):
        with pytest.raises(openai.NotFoundError) as missing:
            call(made.id)
        assert missing.value.type == "invalid_request_error"


def test_endpoints_are_listed_in_pages(client: openai.OpenAI) -> None:
    """Newest first, with both ends named; the client pages through all."""
    ids = [
        client.webhooks.create(name=str(number), url=PUBLIC, event_types=[FAILED]).id for number in range(3)
    ]
    page = client.webhooks.list(limit=2)
    assert [row.id for row in page.data] == ids[:0:-1]
    assert (page.first_id, page.last_id, page.has_more, page.object) == (ids[2], ids[1], True, "list")
    rest = client.webhooks.list(limit=2, after=page.last_id)
    assert ([row.id for row in rest.data], rest.has_more) == (ids[:1], False)


def test_event_types_are_listed(client: openai.OpenAI) -> None:
    """Only what this service sends."""
    listed = client.webhooks.event_types.list()
    assert listed.data == [SUCCEEDED, FAILED, "fine_tuning.job.cancelled"]


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"name": None}, "name", None),
        ({"name": 5}, "name", None),
        ({"name": ""}, "name", None),
        ({"url": None}, "url", None),
        ({"url": "http://hooks.example.com/"}, "url", None),
        ({"url": "https://10.0.0.1/"}, "url", None),
        ({"url": "https://localhost/"}, "url", None),
        ({"event_types": "fine_tuning.job.failed"}, "event_types", None),
        ({"event_types": [7]}, "event_types[0]", None),
        ({"event_types": []}, "event_types", None),
        ({"event_types": ["batch.completed"]}, "event_types", "invalid_value"),
    ],
)
def test_bad_input_is_a_400_that_names_it(
    server: Server, change: dict[str, object], param: str, code: str | None
) -> None:
    """At creation and at a change; nothing is written."""
    good = {"name": "x", "url": PUBLIC, "event_types": [FAILED]}
    answer = server.raw("POST", "/v1/webhook_endpoints", json={**good, **change})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert code is None or error["code"] == code
    assert server.raw("GET", "/v1/webhook_endpoints").json()["data"] == []


def test_a_missing_field_is_named(server: Server) -> None:
    """As OpenAI names it."""
    answer = server.raw("POST", "/v1/webhook_endpoints", json={"name": "x", "event_types": [FAILED]})
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("url", "missing_required_parameter")


def test_another_project_sees_nothing(client: openai.OpenAI, server: Server) -> None:
    """What is not yours does not exist, for any verb."""
    made = client.webhooks.create(name="x", url=PUBLIC, event_types=[FAILED])
    _, key = server.new_key("other")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as other:
        assert other.webhooks.list().data == []
        for call in (
            lambda: other.webhooks.retrieve(made.id),
            lambda: other.webhooks.update(made.id, name="mine"),
            lambda: other.webhooks.delete(made.id),
            lambda: other.webhooks.rotate_secret(made.id),
            lambda: other.webhooks.test(made.id, event_type=FAILED),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
    assert client.webhooks.retrieve(made.id).name == "x"


def test_a_test_event_arrives(client: openai.OpenAI, receiver: Receiver) -> None:
    """Sent at once, signed like a real one; the endpoint's status is reported, whatever it is."""
    made = client.webhooks.create(name="x", url=receiver.url, event_types=[FAILED])
    receiver.statuses = [200, 500]
    result = client.webhooks.test(made.id, event_type=SUCCEEDED)
    assert (result.object, result.webhook_endpoint_id) == ("webhook_endpoint.test", made.id)
    assert (result.event_type, result.status_code, result.success) == (SUCCEEDED, 200, True)
    [request] = receiver.received
    event = client.webhooks.unwrap(request.body, request.headers, secret=made.signing_secret)
    assert event.type == SUCCEEDED and event.data.id.startswith("ftjob-")
    assert client.webhooks.test(made.id, event_type=FAILED).status_code == 500
    with pytest.raises(openai.BadRequestError):
        client.webhooks.test(made.id, event_type="batch.completed")


def test_a_test_that_reaches_nobody_is_a_400(client: openai.OpenAI) -> None:
    """Said in words; the client does not retry it."""
    with listening() as closed:
        url = closed.url
    made = client.webhooks.create(name="x", url=url, event_types=[FAILED])
    with pytest.raises(openai.BadRequestError, match="the connection was refused"):
        client.webhooks.test(made.id, event_type=FAILED)


def test_a_kept_secret_signs_for_a_day_more(
    client: openai.OpenAI, server: Server, receiver: Receiver
) -> None:
    """Both sign until then; a plain rotation ends both."""
    made = client.webhooks.create(name="x", url=receiver.url, event_types=[FAILED])

    def accepted(*secrets: str) -> list[bool]:
        receiver.received.clear()
        server.raw("POST", f"/v1/webhook_endpoints/{made.id}/test", json={"event_type": FAILED})
        [request] = receiver.received
        return [_unwraps(request.body, request.headers, secret) for secret in secrets]

    first = made.signing_secret
    second = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True).signing_secret
    assert second != first
    assert accepted(first, second) == [True, True]
    with server.context.db.transaction() as session:
        endpoint = webhooks.get_endpoint(session, project_id=server.project_id, endpoint_id=made.id)
        assert endpoint.old_secret_until is not None
        assert endpoint.old_secret_until - clock.now() == pytest.approx(24 * 3600, abs=60)
        endpoint.old_secret_until = clock.now() - 1
    assert accepted(first, second) == [False, True]
    client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    third = client.webhooks.rotate_secret(made.id).signing_secret
    assert accepted(first, second, third) == [False, False, True]


def _unwraps(body: bytes, headers: Mapping[str, str], secret: str) -> bool:
    with openai.OpenAI(api_key="unused", webhook_secret=secret) as receiving:
        try:
            receiving.webhooks.unwrap(body, headers)
        except openai.InvalidWebhookSignatureError:
            return False
    return True
