"""Every page renders, for every status, with the headers that protect it and nothing from elsewhere."""

import re
from pathlib import Path

import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from app.core.context import Context
from app.core.db import Database
from app.core.settings import Settings
from app.core.status import STATUSES
from app.main import create_app
from app.services import events, logins, projects
from tests import factories
from tests.app.dashboard import seed
from tests.app.dashboard.seed import Seeded

PATHS = (
    "/finetune",
    "/finetune/new",
    "/graders",
    "/graders/new",
    "/graders/new?type=multi",
    "/models",
    "/playground",
    "/storage/files",
    "/webhooks",
    "/api-keys",
    "/api-reference",
)


@pytest.mark.parametrize("path", PATHS)
def test_page_renders(browser: TestClient, path: str) -> None:
    answer = browser.get(path)
    assert answer.status_code == 200
    assert answer.text.count("<h1>") == 1
    assert "Default project" in answer.text


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("tab", ["", "/events", "/config", "/rollouts"])
def test_job_renders_in_every_status(browser: TestClient, seeded: Seeded, status: str, tab: str) -> None:
    job = getattr(seeded, {"validating_files": "validating", "pausing": "running"}.get(status, status))
    answer = browser.get(f"/finetune/{job}{tab}")
    assert answer.status_code == 200
    if tab != "/rollouts" and status != "pausing":
        assert f'data-status="{status}"' in answer.text


def test_running_job_shows_what_was_measured(browser: TestClient, seeded: Seeded) -> None:
    text = browser.get(f"/finetune/{seeded.running}").text
    assert 'data-points="13"' in text
    assert 'data-last-valid="0.7770"' in text
    assert "Validation 0.78 at step 10, best so far" in text
    assert "Provisional" in text
    assert text.count('data-testid="checkpoint-row"') == 2


def test_finished_job_gives_a_verdict_from_the_test_file(browser: TestClient, seeded: Seeded) -> None:
    text = browser.get(f"/finetune/{seeded.succeeded}").text
    assert "Mean reward, test file, 120 items" in text
    assert "Better than the base model: +" in text
    assert "Provisional" not in text
    assert "hx-sse:connect" not in text


def test_failed_job_says_why_and_what_to_do(browser: TestClient, seeded: Seeded) -> None:
    text = browser.get(f"/finetune/{seeded.failed}").text
    assert "Failed in training file" in text
    assert "did you mean &#34;assistant&#34;?" in text
    assert "Mend the lines it names" in text


def test_filter_shows_its_jobs_only(browser: TestClient, seeded: Seeded) -> None:
    text = browser.get("/finetune?filter=successful").text
    assert f"row-{seeded.succeeded}" in text
    assert f"row-{seeded.running}" not in text


def test_model_output_is_text(browser: TestClient, context: Context, seeded: Seeded) -> None:
    with context.db.transaction() as session:
        events.append(session, job_id=seeded.running, message="<script>alert(1)</script>")
    text = browser.get(f"/finetune/{seeded.running}").text
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in text


def test_no_inline_style_or_script_code(browser: TestClient, seeded: Seeded) -> None:
    for path in (*PATHS, f"/finetune/{seeded.running}", f"/finetune/{seeded.running}/rollouts"):
        text = browser.get(path).text
        assert not re.search(r"\sstyle=", text)
        assert not re.search(r"\son[a-z]+=", text)
        for attributes in re.findall(r"<script([^>]*)>", text):
            assert "src=" in attributes or 'type="application/json"' in attributes


def test_headers_protect_the_page(browser: TestClient) -> None:
    headers = browser.get("/finetune").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_static_files_are_kept_for_ever_under_their_digest(browser: TestClient) -> None:
    text = browser.get("/finetune").text
    for address in re.findall(r'(?:href|src)="(/static/[^"]+)"', text):
        answer = browser.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"], address


def test_unknown_pages_and_jobs_are_404_pages(browser: TestClient) -> None:
    for path in ("/nowhere", "/finetune/ftjob-none", "/storage/files/file-none", "/webhooks/we_none"):
        answer = browser.get(path)
        assert answer.status_code == 404
        assert "Nothing here" in answer.text
        assert answer.headers["content-type"].startswith("text/html")


def test_nul_is_a_404_and_a_strange_cursor_a_400(browser: TestClient) -> None:
    assert browser.get("/finetune/%00").status_code == 404
    assert browser.get("/finetune?after=%00").status_code == 404
    assert browser.get("/finetune?after=ftjob-none").status_code == 400


def test_list_costs_the_same_whatever_its_length(
    browser: TestClient, context: Context, seeded: Seeded
) -> None:
    engine = browser.app.state.context.db.engine  # type: ignore[attr-defined]
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: asked.append(a[2]))
    browser.get(f"/finetune/{seeded.running}")
    before, asked[:] = len(asked), []
    with context.db.transaction() as session:
        project = projects.get_project(session, project_id=seeded.project_id)
        for _ in range(20):
            factories.make_job(session, project)
    browser.get(f"/finetune/{seeded.running}")
    assert len(asked) == before


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_pages_on_postgres(postgres_url: str, database: Database, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "pages", database_url=postgres_url, allowed_hosts="testserver")
    context = Context.build(settings)
    made = seed.seed(context)
    app = create_app(settings)
    client = TestClient(app, follow_redirects=False)
    with context.db.transaction() as session:
        token = logins.create_token(session, project_id=made.project_id)
    assert client.get(f"/login?token={token}").status_code == 303
    job = f"/finetune/{made.succeeded}"
    for path in (*PATHS, job, f"{job}/events", f"{job}/config", f"{job}/rollouts", f"{job}/stream"):
        assert client.get(path).status_code == 200, path
    for path in ("/finetune/%00", "/storage/files/%00", "/finetune?after=%00"):
        assert client.get(path).status_code == 404, path
    app.state.context.db.dispose()
    context.db.dispose()


def test_wrong_parameter_is_a_422_page(browser: TestClient, seeded: Seeded) -> None:
    answer = browser.get(f"/finetune/{seeded.succeeded}/rollouts?step=many")
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("text/html")


def test_api_paths_stay_the_apis(browser: TestClient) -> None:
    answer = browser.get("/v1/nowhere")
    assert answer.headers["content-type"].startswith("application/json")


def test_crash_is_a_page_with_the_request_id(browser: TestClient, seeded: Seeded, context: Context) -> None:
    with context.db.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE checkpoints RENAME TO gone")
    answer = browser.get(f"/finetune/{seeded.running}")
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.text


def test_rollouts_group_samples_best_first(browser: TestClient, seeded: Seeded) -> None:
    text = browser.get(f"/finetune/{seeded.succeeded}/rollouts?split=train&step=6").text
    assert text.count('data-testid="rollout-prompt"') == 8
    assert text.count('data-testid="rollout-sample"') == 8
    rewards = re.findall(r'class="reward [a-z]*">([\d.]+)', text)
    assert rewards == sorted(rewards, reverse=True)


def test_a_step_that_was_not_sampled_shows_the_last_one(browser: TestClient, seeded: Seeded) -> None:
    text = browser.get(f"/finetune/{seeded.succeeded}/rollouts?split=valid&step=999&prompt=999").text
    assert text.count('data-testid="rollout-prompt"') == 60
