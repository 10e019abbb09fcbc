"""Exports through the API: asked for, waited for as clients do, taken away, forgotten; and whose they are."""

from hashlib import sha256

import httpx
import openai
import pytest
from sqlalchemy import delete

from app.core.tables import Export, Model
from app.services import exports, heartbeats, jobs, models
from app.services.exports import Lease
from tests.app.api.server import BOTH, MODEL, Server

TUNED = "ft:tiny/base-model:personal::ExPo1234"
ARCHIVE = b"PK\x03\x04 not a whole archive, and nobody looks"
ADDRESS = f"/v1/models/{TUNED}/export"


def _tune(server: Server, job_id: str) -> None:
    """Make the tuned model, anew when an earlier test left one on the same Postgres server."""
    with server.context.db.transaction() as session:
        session.execute(delete(Model).where(Model.id == TUNED))
        job = jobs.get_job(session, project_id=server.project_id, job_id=job_id)
        models.add_tuned(session, job=job, model_id=TUNED, kind="tuned", uri="x", details={})


def _claim(server: Server) -> Lease:
    with server.context.db.transaction() as session:
        lease = exports.claim(session, seconds=60)
    assert lease is not None
    return lease


def _offer(server: Server, job_id: str) -> str:
    """Offer what waits, as the worker would, and return where it lies."""
    lease = _claim(server)
    uri = f"jobs/{job_id}/exports/{lease.export_id}"
    size, digest = server.context.storage.write(uri, [ARCHIVE])
    with server.context.db.transaction() as session:
        exports.offer(session, lease=lease, uri=uri, size=size, sha256=digest, parity={"passed": True})
    return uri


@BOTH
def test_an_export_is_made_once_and_then_handed_out(
    client: openai.OpenAI, server: Server, job_id: str
) -> None:
    """503 with a time to come back, one row however often it is asked for, then the archive."""
    _tune(server, job_id)
    for _ in range(2):
        waiting = server.raw("GET", f"{ADDRESS}?form=merged")
        assert waiting.status_code == 503
        assert waiting.headers["retry-after"] == "5"
        assert "x-should-retry" not in waiting.headers
        assert waiting.json()["error"]["code"] == "export_not_ready"
        assert "No worker is running" in waiting.json()["error"]["message"]
    with server.context.db.transaction() as session:
        heartbeats.beat(session, part="worker")
    lease = _claim(server)
    with server.context.db.transaction() as session:
        exports.tell(session, lease=lease, stage="Comparing both models", progress=0.6)
    told = server.raw("GET", f"{ADDRESS}?form=merged").json()["error"]["message"]
    assert told == "The export is being made (comparing both models, 60%). Ask again in 5 seconds."
    with server.context.db.transaction() as session:
        exports.abandon(session, lease=lease, counted=False)
    uri = _offer(server, job_id)
    # The address as the client would write it: every part of the name as one.
    made = client.get(f"/models/{TUNED.replace('/', '%2F')}/export?form=merged", cast_to=httpx.Response)
    assert made.content == ARCHIVE
    assert made.headers["content-type"] == "application/octet-stream"
    assert made.headers["content-disposition"] == (
        'attachment; filename="ft-tiny-base-model-personal--ExPo1234-merged.zip"'
    )
    assert made.headers["x-checksum-sha256"] == sha256(ARCHIVE).hexdigest()
    rest = server.raw("GET", f"{ADDRESS}?form=merged", headers={"range": "bytes=4-"})
    assert (rest.status_code, rest.content) == (206, ARCHIVE[4:])
    assert server.context.storage.path(uri).is_file()


def test_the_client_waits_by_itself(server: Server, job_id: str) -> None:
    """The official client, told to try again, ends with the archive: it obeys `retry-after`."""
    _tune(server, job_id)
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        answered = server.http.send(request)
        answered.read()
        if len(asked) == 1:
            _offer(server, job_id)
        asked.append(answered.headers.get("retry-after"))
        # Five seconds would be real ones here.
        headers = {**answered.headers, "retry-after": "0.01"} if asked[-1] else answered.headers
        content = answered.content
        return httpx.Response(answered.status_code, headers=headers, content=content)

    transport = httpx.Client(transport=httpx.MockTransport(answer))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, http_client=transport) as client:
        made = client.get(f"/models/{TUNED}/export?form=gguf", cast_to=httpx.Response)
    assert (made.content, asked) == (ARCHIVE, ["5", "5", None])


def test_a_refused_export_says_why_and_can_be_asked_for_anew(server: Server, job_id: str) -> None:
    _tune(server, job_id)
    server.raw("GET", ADDRESS)
    with server.context.db.transaction() as session:
        lease = exports.claim(session, seconds=60)
        assert lease is not None
        exports.refuse(session, lease=lease, reason="It answers otherwise.", parity={"passed": False})
    for _ in range(2):
        refused = server.raw("GET", ADDRESS)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "export_refused")
        assert "It answers otherwise." in refused.json()["error"]["message"]
    for expected in (True, False):
        gone = server.raw("DELETE", ADDRESS).json()
        assert gone == {
            "id": TUNED,
            "object": "model.export.deleted",
            "form": "adapter",
            "deleted": expected,
        }
    assert server.raw("GET", ADDRESS).json()["error"]["code"] == "export_not_ready"


def test_the_archives_go_with_their_model(client: openai.OpenAI, server: Server, job_id: str) -> None:
    _tune(server, job_id)
    server.raw("GET", ADDRESS)
    path = server.context.storage.path(_offer(server, job_id))
    assert path.is_file()
    assert client.models.delete(TUNED).deleted
    assert not path.exists()
    with server.context.db.reading() as session:
        assert session.query(Export).count() == 0
    assert server.raw("GET", ADDRESS).json()["error"]["code"] == "model_not_found"


@BOTH
def test_a_dead_exporters_work_is_taken_over_and_its_word_counts_no_more(server: Server, job_id: str) -> None:
    _tune(server, job_id)
    server.raw("GET", ADDRESS)
    first = _claim(server)
    with server.context.db.transaction() as session:
        assert exports.claim(session, seconds=60) is None
        session.get_one(Export, first.export_id).lease_expires_at = 1.0
    second = _claim(server)
    assert (second.export_id, second.token) == (first.export_id, first.token + 1)
    with pytest.raises(exports.LeaseLost), server.context.db.transaction() as session:
        exports.tell(session, lease=first, stage="Still here", progress=0.9)
    with server.context.db.transaction() as session:
        session.get_one(Export, first.export_id).lease_expires_at = 1.0
    with server.context.db.transaction() as session:
        assert exports.claim(session, seconds=60) is None
        exports.sweep(session)
    failed = server.raw("GET", ADDRESS).json()["error"]
    assert failed["code"] == "export_failed"
    assert "killed 2 times" in failed["message"]


def test_what_can_not_be_exported_is_refused_at_once(server: Server, job_id: str) -> None:
    _tune(server, job_id)
    cases = (
        (f"/v1/models/{MODEL}/export", 400, "export_not_supported", "model"),
        (f"{ADDRESS}?form=onnx", 400, "invalid_value", "form"),
        ("/v1/models/ft:none/export", 404, "model_not_found", "model"),
    )
    for address, status, code, param in cases:
        error = server.raw("GET", address)
        assert (error.status_code, error.json()["error"]["code"], error.json()["error"]["param"]) == (
            status,
            code,
            param,
        )
        assert server.raw("DELETE", address).status_code == status
    with server.context.db.transaction() as session:
        base = session.get_one(Model, MODEL)
        base.details = {**base.details, "architecture": "GPT2LMHeadModel"}
    refused = server.raw("GET", f"{ADDRESS}?form=gguf").json()["error"]
    assert refused["code"] == "export_not_supported"
    assert "GPT2LMHeadModel" in refused["message"]
    assert server.raw("GET", f"{ADDRESS}?form=merged").status_code == 503


def test_another_project_may_use_a_shared_model_and_not_carry_it_away(server: Server, job_id: str) -> None:
    _tune(server, job_id)
    project_id, key = server.new_key("other")
    theirs = {"authorization": f"Bearer {key}"}
    assert server.raw("GET", ADDRESS, headers=theirs).status_code == 404
    body = {"project_ids": [project_id]}
    assert server.raw("POST", f"/v1/fine_tuning/checkpoints/{TUNED}/permissions", json=body).is_success
    assert server.raw("GET", f"/v1/models/{TUNED}", headers=theirs).is_success
    refused = server.raw("GET", ADDRESS, headers=theirs)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
