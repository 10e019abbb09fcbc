"""A model's page: where it comes from, whether it answers, its exports from first click to archive."""

from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from app.core.context import Context
from app.core.tables import Export, Job, Model, Permission
from app.services import exports, models
from app.services.exports import Lease
from tests.app.dashboard import seed
from tests.app.dashboard.seed import Seeded
from tests.factories import make_project

ARCHIVE = b"an archive"
PARITY = {
    "prompts": 32,
    "positions": 6460,
    "agreement": 0.99938,
    "same_texts": 31,
    "near_ties": 1,
}


@pytest.fixture
def tuned(context: Context, seeded: Seeded) -> str:
    """The name of the succeeded job's model."""
    with context.db.reading() as session:
        name = session.get_one(Job, seeded.succeeded).fine_tuned_model
    assert name is not None
    return name


def _claim(context: Context) -> Lease:
    with context.db.transaction() as session:
        lease = exports.claim(session, seconds=60)
    assert lease is not None
    return lease


def test_a_tuned_model_tells_where_it_comes_from(browser: TestClient, seeded: Seeded, tuned: str) -> None:
    text = browser.get(f"/models/{quote(tuned)}").text
    for said in (
        f"<h1>{tuned}</h1>",
        f'href="/storage/files/{seeded.training_file}"',
        f'href="/finetune/{seeded.succeeded}"',
        "Better than the base model:",
        "This model",
        f"model=&#34;{tuned}&#34;",
        "Not answering",
        'data-form="gguf"',
    ):
        assert said in text, said
    assert text.count('data-testid="checkpoint-row"') == 4
    assert f'href="/models/{quote(tuned)}"' in browser.get("/models").text


def test_a_checkpoint_has_the_verdict_of_its_own_step(
    browser: TestClient, context: Context, seeded: Seeded
) -> None:
    with context.db.reading() as session:
        rows = session.query(Model).where(Model.kind == "checkpoint", Model.job_id == seeded.succeeded)
        checkpoint = next(row.id for row in rows if row.details["step"] == 10)
    text = browser.get(f"/models/{quote(checkpoint)}").text
    assert "Mean reward, validation file, 60 items" in text
    assert "step 10 of 20" in text


def test_a_shared_model_tells_nothing_of_its_owner(
    browser: TestClient, context: Context, seeded: Seeded, tuned: str
) -> None:
    with context.db.transaction() as session:
        other = make_project(session)
        for model in session.query(Model).where(Model.job_id == seeded.succeeded):
            model.project_id = other.id
        session.get_one(Job, seeded.succeeded).model = "ft:private"
        session.add(Permission(id="cp_1", model_id=tuned, project_id=seeded.project_id, created_at=1.0))
    for path in ("/models", f"/models/{quote(tuned)}"):
        text = browser.get(path).text
        assert tuned in text
        assert seeded.succeeded not in text
        assert "ft:private" not in text


def test_a_build_is_cancelled_and_a_deleted_model_is_not_named(
    browser: TestClient, context: Context, csrf: str, seeded: Seeded, tuned: str
) -> None:
    address = f"/models/{quote(tuned)}"
    browser.post(f"{address}/exports/merged", data={"csrf": csrf})
    lease = _claim(context)
    assert ">Cancel<span" in browser.get(address).text
    assert browser.post(f"{address}/exports/merged/delete", data={"csrf": csrf}).status_code == 303
    with context.db.reading() as session:
        assert session.get(Export, lease.export_id) is None
        rows = session.query(Model).where(Model.kind == "checkpoint", Model.job_id == seeded.succeeded)
        checkpoint = rows.first().id
    assert f'href="{address}"' in browser.get(f"/models/{quote(checkpoint)}").text
    browser.post(f"{address}/delete", data={"csrf": csrf})
    assert f'href="{address}"' not in browser.get(f"/models/{quote(checkpoint)}").text


def test_a_base_model_has_nothing_to_export_or_delete(browser: TestClient) -> None:
    text = browser.get(f"/models/{seed.MODEL}").text
    assert "134.5M parameters" in text or "135M parameters" in text
    assert 'data-testid="export-row"' not in text
    assert "Delete the model" not in text
    assert browser.get("/models/nothing").status_code == 404


def test_an_export_is_built_shown_and_downloaded(
    browser: TestClient, context: Context, csrf: str, tuned: str
) -> None:
    address = f"/models/{quote(tuned)}"
    asked = browser.post(f"{address}/exports/adapter", data={"csrf": csrf})
    assert (asked.status_code, asked.headers["location"]) == (303, f"{address}#exports")
    assert browser.get(f"{address}/exports/adapter").status_code == 404
    lease = _claim(context)
    with context.db.transaction() as session:
        exports.tell(session, lease=lease, stage="Comparing both models", progress=0.62)
    fragment = browser.get(f"{address}/exports").text
    assert "<h1>" not in fragment
    assert "Comparing both models, 62%" in fragment
    assert 'hx-trigger="every 1s"' in fragment
    size, digest = context.storage.write("jobs/x/exports/y", [ARCHIVE])
    with context.db.transaction() as session:
        exports.offer(session, lease=lease, uri="jobs/x/exports/y", size=size, sha256=digest, parity=PARITY)
    text = browser.get(address).text
    assert digest in text
    assert (
        "Next token agrees at 99.94% of 6,460 places · 31 of 32 greedy texts equal, 1 part at a tie" in text
    )
    assert "hx-trigger" not in text
    sent = browser.get(f"{address}/exports/adapter")
    assert (sent.status_code, sent.content) == (200, ARCHIVE)
    assert sent.headers["content-disposition"].startswith("attachment; ")
    assert browser.post(f"{address}/exports/adapter/delete", data={"csrf": csrf}).status_code == 303
    assert not context.storage.path("jobs/x/exports/y").exists()


def test_what_the_gate_kept_back_says_why_and_can_be_built_again(
    browser: TestClient, context: Context, csrf: str, tuned: str
) -> None:
    address = f"/models/{quote(tuned)}"
    browser.post(f"{address}/exports/merged", data={"csrf": csrf})
    reason = "It does not answer as the trained model does. 3 of 32 greedy texts differ."
    with context.db.transaction() as session:
        lease = exports.claim(session, seconds=60)
        assert lease is not None
        exports.refuse(session, lease=lease, reason=reason, parity=PARITY)
    text = browser.get(address).text
    assert reason in text
    assert "Build again" in text
    assert browser.post(f"{address}/exports/merged", data={"csrf": csrf}).status_code == 303
    with context.db.reading() as session:
        (again,) = session.query(Export).all()
    assert (again.status, again.reason, again.id != lease.export_id) == ("queued", None, True)


def test_forms_need_the_token_and_the_owner(
    browser: TestClient, context: Context, csrf: str, seeded: Seeded, tuned: str
) -> None:
    address = f"/models/{quote(tuned)}"
    for path in ("exports/adapter", "exports/adapter/delete", "stop", "load", "delete"):
        assert browser.post(f"{address}/{path}", data={"csrf": "wrong"}).status_code == 403
    assert browser.post(f"{address}/exports/onnx", data={"csrf": csrf}).status_code == 400
    assert browser.post(f"/models/{seed.MODEL}/exports/gguf", data={"csrf": csrf}).status_code == 400
    assert browser.post("/models/ft:nobody/exports/gguf", data={"csrf": csrf}).status_code == 404


def test_a_model_is_stopped_and_loaded_again(
    browser: TestClient, context: Context, csrf: str, tuned: str
) -> None:
    address = f"/models/{quote(tuned)}"
    assert browser.post(f"{address}/stop", data={"csrf": csrf}).status_code == 303
    text = browser.get(address).text
    assert 'data-status="stopped"' in text
    assert ">Load</button>" in text
    assert browser.post(f"{address}/load", data={"csrf": csrf}).status_code == 303
    with context.db.reading() as session:
        assert session.get_one(Model, tuned).stopped_at is None
    assert browser.post(f"{address}/delete", data={"csrf": csrf}).status_code == 303
    with context.db.reading() as session:
        assert session.get(Model, tuned) is None
        assert models.list_base_models(session)
