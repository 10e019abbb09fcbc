"""The main job through a real browser and real processes: created in the form, trained, exported, asked."""

import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.conftest import Watched
from tests.browser.test_job_journey import create_run, point_count
from tests.service import Service, running_service

TRAINING_MILLISECONDS = 240_000


def test_a_run_created_in_the_browser_is_trained_while_its_page_follows(
    open_page: Callable[..., Watched], tmp_path: Path
) -> None:
    with running_service(tmp_path) as service:
        watched = open_page(service.url)
        page = watched.page
        page.goto(service.login_url())
        page.wait_for_url("**/finetune")
        create_run(
            page,
            tmp_path,
            suffix="real",
            n_epochs=1,
            batch_size=4,
            samples_per_prompt=2,
            max_completion_tokens=8,
            eval_interval=2,
            lora_rank=2,
        )
        page.evaluate("window.stayed = true")
        status = page.get_by_test_id("job-status")
        expect(status).to_have_text("Succeeded", timeout=TRAINING_MILLISECONDS)
        assert page.evaluate("window.stayed")
        expect(page.get_by_test_id("reward-chart")).to_have_attribute("data-points", "7")
        assert page.get_by_test_id("reward-chart").get_attribute("data-last-valid")
        expect(page.get_by_test_id("checkpoint-row")).to_have_count(3)
        expect(page.get_by_test_id("verdict")).to_contain_text("points, 95% CI")
        assert point_count(page) == 7
        watched.check("tiny : real")
        page.get_by_role("link", name="Rollouts").click()
        expect(page.get_by_test_id("rollout-prompt")).to_have_count(4)
        expect(page.get_by_test_id("rollout-sample")).to_have_count(2)
        watched.check("Rollouts")
        ask_both(watched)
        take_the_adapter(watched, service)


def ask_both(watched: Watched) -> None:
    """Ask base and tuned model the job's own question, graded by its grader, in the inference process."""
    page = watched.page
    page.goto(page.url.split("/rollouts")[0])
    page.get_by_role("link", name="Open in Playground").click()
    page.locator("#max_completion_tokens").fill("8")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_test_id("sample")).to_have_count(2, timeout=TRAINING_MILLISECONDS)
    expect(page.get_by_test_id("grader-score")).to_have_count(2)
    expect(page.get_by_test_id("column-reading").first).to_contain_text("written")
    watched.check("Playground")


def take_the_adapter(watched: Watched, service: Service) -> None:
    """Have the worker export the tuned model from its page, and look into what comes down."""
    page = watched.page
    page.get_by_role("link", name="Models", exact=True).click()
    page.locator('a[href^="/models/ft%3Atiny%3A"]').filter(has_not_text="ckpt").click()
    page.get_by_role("button", name="Build LoRA adapter").click()
    adapter = page.locator('[data-form="adapter"]')
    expect(adapter).to_contain_text("greedy texts equal", timeout=2 * TRAINING_MILLISECONDS)
    with page.expect_download() as download:
        adapter.get_by_role("link", name="Download").click()
    archive = Path(download.value.path())
    shown = adapter.locator("code").get_attribute("title")
    assert shown == sha256(archive.read_bytes()).hexdigest(), service.logs()
    with zipfile.ZipFile(archive) as opened:
        names = {name.split("/")[1] for name in opened.namelist()}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
