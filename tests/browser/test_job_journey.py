"""A person signs in, creates a run, watches it live to its end and reads its answers, in a real browser.

The steps of the run are written by the test through the services, as a worker would write them.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.core import clock
from app.core.context import Context
from app.core.tables import Job
from app.services import events, jobs
from tests import factories
from tests.app.dashboard import seed, seed_steps
from tests.browser.conftest import Service, Watched

Open = Callable[..., Watched]


def write_files(folder: Path) -> dict[str, Path]:
    """Write a training and a validation file, and one that is no dataset."""
    paths = {}
    for name, count in (("training_file", 24), ("validation_file", 8)):
        rows = [factories.question(f"{name} {n} + 1?", str(n + 1)) for n in range(count)]
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_bytes(factories.jsonl(rows))
    return paths


def sign_in(watched: Watched, service: Service) -> Page:
    """Open the printed address."""
    watched.page.goto(service.login_url())
    watched.page.wait_for_url("**/finetune")
    return watched.page


def create_run(page: Page, folder: Path, *, suffix: str, **hyperparameters: int) -> str:
    """Fill the create form, upload both files, start; return the job's id."""
    page.get_by_role("link", name="Create", exact=True).click()
    for name, path in write_files(folder).items():
        page.locator(f"#{name}_upload").set_input_files(path)
    page.locator("#grader-template").select_option(label="The answer contains the reference")
    page.get_by_label("Suffix").fill(suffix)
    if hyperparameters:
        page.get_by_text("Hyperparameters", exact=True).click()
    for name, value in hyperparameters.items():
        page.locator(f"#{name}").fill(str(value))
    page.get_by_role("button", name="Start run").click()
    expect(page.get_by_test_id("job-status")).to_be_visible()
    return page.url.split("/")[-1].split("?")[0]


def point_count(page: Page) -> int:
    """Return how many steps the chart shows."""
    return int(page.get_by_test_id("reward-chart").get_attribute("data-points") or 0)


def set_job(context: Context, job_id: str, **values: object) -> None:
    """Put values over a job's row, as its trainer would."""
    with context.db.transaction() as session:
        job = session.get_one(Job, job_id)
        for name, value in values.items():
            setattr(job, name, value)


def take_step(context: Context, job_id: str, step: int) -> None:
    """Write one step."""
    with context.db.transaction() as session:
        seed_steps.add_step(session, session.get_one(Job, job_id), step, random.Random(step))


def run_to_step(service: Service, job_id: str, page: Page) -> None:
    """Take the job from validation to step 10, checking that the page follows without a reload."""
    page.evaluate("window.stayed = true")
    expect(page.get_by_test_id("job-status")).to_have_text("Validating files")
    set_job(service.context, job_id, status="queued")
    expect(page.get_by_test_id("job-status")).to_have_text("Queued")
    lease = {"lease_owner": "test", "lease_expires_at": clock.now() + 3600}
    set_job(service.context, job_id, status="running", total_steps=20, resolved=seed.RESOLVED, **lease)
    expect(page.get_by_test_id("job-status")).to_contain_text("Running")
    expect(page.get_by_test_id("verdict")).to_contain_text("No verdict yet")
    for step in range(11):
        take_step(service.context, job_id, step)
        expect(page.get_by_test_id("reward-chart")).to_have_attribute("data-points", str(step + 1))
    expect(page.get_by_test_id("reward-chart")).to_have_attribute("data-last-valid", "0.7770")
    expect(page.get_by_test_id("job-status")).to_contain_text("step 10 of 20")
    expect(page.get_by_test_id("checkpoint-row")).to_have_count(2)
    assert page.evaluate("window.stayed")


def test_a_run_from_form_to_end(service: Service, open_page: Open, tmp_path: Path) -> None:
    with service.context.db.transaction() as session:
        factories.make_base_model(session, "tiny")
    watched = open_page(service.url)
    page = sign_in(watched, service)
    watched.check("Teach a model by scoring its answers")
    job_id = create_run(page, tmp_path, suffix="journey")
    watched.check("tiny : journey")
    run_to_step(service, job_id, page)
    watched.check("tiny : journey")

    # The chart answers to the keyboard.
    page.get_by_test_id("reward-chart").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".tip")).to_contain_text("Step 1")

    # Pausing asks first, and the page follows.
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_role("dialog")).to_contain_text("A checkpoint is kept")
    page.get_by_role("button", name="Pause the run").click()
    expect(page.get_by_test_id("job-status")).to_have_text("Pausing after this step")
    set_job(service.context, job_id, status="paused", lease_owner=None, lease_expires_at=None)
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_test_id("job-status")).to_have_text("Queued")

    with service.context.db.transaction() as session:
        events.append(session, job_id=job_id, message="The job has successfully completed")
        session.flush()
        session.get_one(Job, job_id).status = "succeeded"
    expect(page.get_by_test_id("job-status")).to_have_text("Succeeded")
    expect(page.locator("#toast")).to_contain_text("The run has ended")
    expect(page.get_by_test_id("live-indicator")).to_have_text("Ended")
    assert watched.faults == []


def test_a_dropped_stream_recovers_without_gap_or_repeat(
    service: Service, open_page: Open, caplog: pytest.LogCaptureFixture
) -> None:
    made = seed.seed(service.context)
    watched = open_page(service.url)
    page = sign_in(watched, service)
    page.clock.install()
    page.goto(f"{service.url}/finetune/{made.running}/events")
    expect(page.get_by_test_id("live-indicator")).to_have_text("Live")
    take_step(service.context, made.running, 13)
    expect(page.get_by_test_id("job-status")).to_contain_text("step 13 of 20")
    service.stop()
    # The open page did not hold it up.
    assert "graceful shutdown exceeded" not in caplog.text
    take_step(service.context, made.running, 14)
    expect(page.get_by_test_id("live-indicator")).to_have_text("Reconnecting")
    # However long the service was away, the page is back within seconds of it.
    for _ in range(30):
        page.clock.run_for(4000)
    expect(page.get_by_test_id("live-indicator")).to_contain_text("Updates paused, last at")
    expect(page.get_by_test_id("job-status")).to_contain_text("step 13 of 20")
    service.start()
    take_step(service.context, made.running, 15)
    with service.context.db.reading() as session:
        last = session.get_one(Job, made.running).event_seq
    expect(page.locator(f"#event-{last}")).to_be_visible()
    expect(page.get_by_test_id("live-indicator")).to_have_text("Live")
    rows = page.get_by_test_id("event-row").evaluate_all("rows => rows.map(row => Number(row.dataset.seq))")
    assert rows == list(range(last, last - len(rows), -1))


def test_updates_can_be_held_and_lose_nothing(service: Service, open_page: Open) -> None:
    made = seed.seed(service.context)
    watched = open_page(service.url)
    page = sign_in(watched, service)
    page.goto(f"{service.url}/finetune/{made.running}")
    expect(page.get_by_test_id("live-indicator")).to_have_text("Live")
    page.get_by_role("button", name="Pause live updates").click()
    take_step(service.context, made.running, 13)
    take_step(service.context, made.running, 14)
    expect(page.get_by_test_id("live-indicator")).to_contain_text("Paused at")
    assert point_count(page) == 13
    page.get_by_role("button", name="Go on with live updates").click()
    expect(page.get_by_test_id("reward-chart")).to_have_attribute("data-points", "15")
    expect(page.get_by_test_id("job-status")).to_contain_text("step 14 of 20")


def test_every_page_in_both_themes_and_narrow(service: Service, open_page: Open) -> None:
    made = seed.seed(service.context)
    job = f"/finetune/{made.succeeded}"
    pages = {
        job: "smollm2-135m-instruct : order-numbers-v1",
        f"{job}/events": "smollm2-135m-instruct : order-numbers-v1",
        f"{job}/config": "smollm2-135m-instruct : order-numbers-v1",
        f"{job}/rollouts?step=6": "Rollouts",
        f"/finetune/{made.failed}": "smollm2-135m-instruct : typo",
        "/finetune/new": "Create a run",
        "/graders": "Graders",
        "/graders/new": "New grader",
        f"/graders/new?type=multi&file={made.training_file}": "New grader",
        "/graders/new?type=score_model": "New grader",
        "/storage/files": "Datasets",
        f"/storage/files/{made.training_file}": "orders_train.jsonl",
        "/models": "Models",
        "/playground": "Playground",
        f"/playground?model={seed.MODEL}&job={made.succeeded}": "Playground",
        f"/models/{seed.MODEL}": seed.MODEL,
        "/webhooks": "Webhooks",
        "/api-keys": "API keys",
        "/api-reference": "API reference",
        "/nowhere": "Nothing here",
    }
    for size in ({"scheme": "light"}, {"scheme": "dark"}, {"width": 390, "height": 844}, {"width": 320}):
        watched = open_page(service.url, **size)
        sign_in(watched, service)
        for path, heading in pages.items():
            watched.page.goto(service.url + path)
            watched.check(heading)


def test_a_refused_form_leads_to_its_field(service: Service, open_page: Open) -> None:
    made = seed.seed(service.context)
    watched = open_page(service.url)
    page = sign_in(watched, service)
    page.goto(f"{service.url}/finetune/new?from={made.succeeded}")
    page.locator("#grader").fill('{"type": "magic"}')
    page.get_by_role("button", name="Start run").click()
    summary = page.locator("#summary")
    expect(summary).to_be_focused()
    summary.get_by_role("link").click()
    assert page.url.endswith("#grader")
    expect(page.locator("#grader")).to_have_attribute("aria-invalid", "true")
    assert json.loads(page.locator("#grader").input_value()) == {"type": "magic"}
    watched.check("Create a run")
    with service.context.db.reading() as session:
        assert len(jobs.list_jobs(session, project_id=made.project_id, limit=100).rows) == 7


def test_the_theme_follows_its_button(service: Service, open_page: Open) -> None:
    made = seed.seed(service.context)
    watched = open_page(service.url)
    page = sign_in(watched, service)
    page.goto(f"{service.url}/finetune/{made.running}")
    page.locator("#theme").click()
    page.locator("#theme").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(19, 18, 16)"
    assert watched.faults == []
