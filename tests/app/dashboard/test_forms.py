"""The forms: a run is created through the API's own validator, and refusals keep what was typed."""

import json
import socket
from typing import Any

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from app.core.context import Context
from app.core.errors import InvalidRequest
from app.core.tables import ApiKey, Job, WebhookEndpoint
from app.dashboard import create_templates
from app.dashboard.create import build_body, field_of
from app.services import files, jobs
from tests import factories
from tests.app.dashboard.seed import MODEL, Seeded

GRADER = json.dumps(create_templates.GRADERS["exact"][1])


def form(csrf: str, seeded: Seeded, **more: str) -> dict[str, str]:
    """Return a complete create form."""
    return {
        "csrf": csrf,
        "model": MODEL,
        "training_file": seeded.training_file,
        "grader": GRADER,
        "response_format": json.dumps(create_templates.FORMATS["one"][1]),
    } | more


def test_form_creates_the_job_the_api_would(
    browser: TestClient, context: Context, seeded: Seeded, csrf: str
) -> None:
    answer = browser.post(
        "/finetune/new", data=form(csrf, seeded, suffix="mine", seed="11", batch_size="4", kl_beta="auto")
    )
    assert answer.status_code == 303
    with context.db.reading() as session:
        job = jobs.get_job(
            session, project_id=seeded.project_id, job_id=answer.headers["location"].split("/")[-1]
        )
    assert (job.suffix, job.seed, job.model) == ("mine", 11, MODEL)
    assert job.method["reinforcement"]["hyperparameters"]["batch_size"] == 4
    assert job.method["reinforcement"]["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model", "gpt-9", "not available"),
        ("training_file", "", "training_file"),
        ("training_file", "file-none", "file-none"),
        ("grader", "{", "not JSON"),
        ("grader", "", "grader"),
        ("grader", '{"type": "magic"}', "magic"),
        ("response_format", '{"type": "xml"}', "xml"),
        ("batch_size", "0", "batch_size"),
        ("batch_size", "lots", "batch_size"),
        ("temperature", "NaN", "temperature"),
        ("seed", "-1", "seed"),
        ("suffix", "x" * 65, "suffix"),
    ],
)
def test_refusal_stands_at_its_field_and_values_are_kept(
    browser: TestClient, context: Context, seeded: Seeded, csrf: str, field: str, value: str, words: str
) -> None:
    with context.db.reading() as session:
        before = len(session.scalars(select(Job.id)).all())
    sent = form(csrf, seeded, suffix="keep-me") | {field: value}
    answer = browser.post("/finetune/new", data=sent)
    assert answer.status_code == 422
    assert f'id="{field}-wrong"' in answer.text
    assert f'href="#{field}"' in answer.text
    wrong = answer.text.split(f'id="{field}-wrong">')[1].split("</p>")[0]
    assert words in wrong
    if field != "suffix":
        assert 'value="keep-me"' in answer.text
    with context.db.reading() as session:
        assert len(session.scalars(select(Job.id)).all()) == before


def test_uploads_survive_a_refusal(browser: TestClient, context: Context, seeded: Seeded, csrf: str) -> None:
    upload = ("mine.jsonl", factories.jsonl([factories.question("1+1?", "2")]))
    sent = form(csrf, seeded, training_file="", grader="{")
    answer = browser.post("/finetune/new", data=sent, files={"training_file_upload": upload})
    assert answer.status_code == 422
    with context.db.reading() as session:
        newest = files.list_files(session, project_id=seeded.project_id, limit=1).rows[0]
    assert newest.filename == "mine.jsonl"
    assert f'<option value="{newest.id}" selected>' in answer.text


def test_duplicate_fills_the_form(browser: TestClient, seeded: Seeded) -> None:
    text = browser.get(f"/finetune/new?from={seeded.failed}").text
    assert 'value="typo"' in text
    assert "{{item.order_number}}" in text


def test_fresh_form_starts_with_a_grader_and_its_file(browser: TestClient, seeded: Seeded) -> None:
    text = browser.get(f"/finetune/new?file={seeded.training_file}").text
    assert f'<option value="{seeded.training_file}" selected>' in text
    assert "ilike" in text.split('<textarea id="grader"')[1].split("</textarea>")[0]


def test_every_ready_text_is_accepted(browser: TestClient, seeded: Seeded, csrf: str) -> None:
    for _, grader in create_templates.GRADERS.values():
        answer = browser.post("/finetune/new", data=form(csrf, seeded, grader=json.dumps(grader)))
        assert answer.status_code == 303
    for _, wanted in create_templates.FORMATS.values():
        answer = browser.post("/finetune/new", data=form(csrf, seeded, response_format=json.dumps(wanted)))
        assert answer.status_code == 303


def test_empty_fields_are_left_out_of_the_request() -> None:
    body = build_body({"model": "m", "training_file": "f", "grader": GRADER, "suffix": " ", "seed": ""})
    assert set(body) == {"model", "training_file", "method"}
    assert set(body["method"]["reinforcement"]) == {"grader"}


@pytest.mark.parametrize(
    ("param", "field"),
    [
        ("method.reinforcement.hyperparameters.n_epochs", "n_epochs"),
        ("method.reinforcement.grader.graders.a.type", "grader"),
        ("method.reinforcement.response_format", "response_format"),
        ("training_file", "training_file"),
        ("metadata", "form"),
        (None, "form"),
    ],
)
def test_params_have_fields(param: str | None, field: str) -> None:
    assert field_of(InvalidRequest("no", param=param)) == field


def test_pause_resume_cancel(browser: TestClient, context: Context, seeded: Seeded, csrf: str) -> None:
    for move, status in (("pause", "pausing"), ("cancel", "cancelled")):
        assert browser.post(f"/finetune/{seeded.running}/{move}", data={"csrf": csrf}).status_code == 303
        with context.db.reading() as session:
            assert session.get_one(Job, seeded.running).status == status
    answer = browser.post(f"/finetune/{seeded.running}/pause", data={"csrf": csrf})
    assert answer.status_code == 400
    assert "Cannot pause job" in answer.text
    assert browser.post(f"/finetune/{seeded.paused}/resume", data={"csrf": csrf}).status_code == 303


def test_file_is_uploaded_previewed_downloaded_deleted(browser: TestClient, csrf: str) -> None:
    data = factories.jsonl([factories.question("<b>1+1</b>?", "2")]) + b'{"messages": "no"}\n'
    answer = browser.post("/storage/files", data={"csrf": csrf}, files={"file": ("mine.jsonl", data)})
    assert answer.status_code == 303
    address = answer.headers["location"]
    text = browser.get(address).text
    assert "&lt;b&gt;1+1&lt;/b&gt;?" in text
    assert "`messages` must be an array" in text
    download = browser.get(f"{address}/content")
    assert download.content == data
    assert download.headers["content-disposition"].startswith("attachment")
    assert browser.post(f"{address}/delete", data={"csrf": csrf}).status_code == 303
    assert browser.get(address).status_code == 404


@pytest.mark.parametrize(
    ("upload", "words"),
    [(("mine.txt", b"{}"), "must be a .jsonl file"), (("mine.jsonl", b""), "File is empty")],
)
def test_wrong_file_is_refused_on_the_page(
    browser: TestClient, context: Context, csrf: str, upload: tuple[str, bytes], words: str
) -> None:
    before = sorted((context.settings.root / "files").rglob("*"))
    answer = browser.post("/storage/files", data={"csrf": csrf}, files={"file": upload})
    assert answer.status_code == 422
    assert words in answer.text
    assert sorted((context.settings.root / "files").rglob("*")) == before


def test_key_is_shown_once_and_revoked(browser: TestClient, context: Context, csrf: str) -> None:
    text = browser.post("/api-keys", data={"csrf": csrf, "name": "mine"}).text
    secret = text.split('data-testid="api-key-once"')[1].split("<code>")[1].split("</code>")[0]
    assert browser.get("/v1/files", headers={"authorization": f"Bearer {secret}"}).status_code == 200
    assert secret not in browser.get("/api-keys").text
    with context.db.reading() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.name == "mine")).one()
    assert browser.post(f"/api-keys/{key.id}/revoke", data={"csrf": csrf}).status_code == 303
    assert browser.get("/v1/files", headers={"authorization": f"Bearer {secret}"}).status_code == 401
    assert browser.post("/api-keys", data={"csrf": csrf, "name": " "}).status_code == 422


def test_endpoint_is_added_and_deleted(browser: TestClient, context: Context, csrf: str) -> None:
    sent = {"csrf": csrf, "name": "mine", "url": "https://93.184.216.34/hook"}
    types = {"event_types": ["fine_tuning.job.failed"]}
    text = browser.post("/webhooks", data=sent | types).text
    assert "whsec_" in text.split('data-testid="webhook-secret-once"')[1]
    with context.db.reading() as session:
        endpoint = session.scalars(select(WebhookEndpoint).where(WebhookEndpoint.name == "mine")).one()
    assert endpoint.event_types == ["fine_tuning.job.failed"]
    assert endpoint.secret not in browser.get(f"/webhooks/{endpoint.id}").text
    assert browser.post(f"/webhooks/{endpoint.id}/delete", data={"csrf": csrf}).status_code == 303
    refused = browser.post("/webhooks", data=sent | types | {"url": "http://127.0.0.1/x"})
    assert refused.status_code == 422
    assert 'id="url-wrong"' in refused.text
    assert 'value="mine"' in refused.text


def test_endpoint_whose_name_leads_inside_is_refused(
    browser: TestClient, context: Context, csrf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name server is asked while others can write: with the lock held, its answer would never come."""

    def name_server(*_: object, **__: object) -> list[tuple[Any, ...]]:
        with context.db.transaction() as session:
            session.execute(update(WebhookEndpoint).values(name="written meanwhile"))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.1.2.3", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", name_server)
    sent = {"csrf": csrf, "name": "mine", "url": "https://hooks.example.com/x"}
    refused = browser.post("/webhooks", data=sent | {"event_types": ["fine_tuning.job.failed"]})
    assert refused.status_code == 422
    assert "is not a public address" in refused.text
    assert 'id="url-wrong"' in refused.text
    with context.db.reading() as session:
        assert session.scalars(select(WebhookEndpoint.name)).all() == ["written meanwhile"]


def test_deliveries_are_listed(browser: TestClient, context: Context) -> None:
    with context.db.reading() as session:
        endpoint = session.scalars(select(WebhookEndpoint)).one()
    text = browser.get(f"/webhooks/{endpoint.id}").text
    assert text.count('data-testid="delivery-row"') == 1
    assert "fine_tuning.job.succeeded" in text
