"""The Playground in a real browser: two models stream over one input, graded, stopped, loaded again."""

import json
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from app.core.tables import Job, Model
from app.services import models
from tests.app.dashboard import seed
from tests.app.dashboard.seed import Seeded
from tests.browser.conftest import Service, Watched
from tests.browser.test_job_journey import sign_in
from tests.engine import EngineServer, engine_running

Open = Callable[..., Watched]


@pytest.fixture
def engine(service: Service) -> Iterator[EngineServer]:
    """An engine for the seeded base model and what is tuned from it."""
    with engine_running() as engine:
        engine.write_providers(service.context.settings.root, seed.MODEL)
        yield engine


def made(service: Service) -> tuple[Seeded, str]:
    """Seed a project whose tuned model has weights, and return the model's name too."""
    seeded = seed.seed(service.context)
    with service.context.db.reading() as session:
        name = session.get_one(Job, seeded.succeeded).fine_tuned_model or ""
        uri = session.get_one(Model, name).uri or ""
    with service.context.storage.writing_directory(uri) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return seeded, name


@pytest.mark.parametrize("look", [{"scheme": "light"}, {"scheme": "dark"}, {"width": 390, "height": 844}])
def test_base_and_tuned_side_by_side(
    service: Service, open_page: Open, engine: EngineServer, look: dict[str, object]
) -> None:
    seeded, tuned = made(service)
    watched = open_page(service.url, **look)
    page = sign_in(watched, service)
    page.goto(f"{service.url}/finetune/{seeded.succeeded}")
    page.get_by_role("link", name="Open in Playground").click()
    watched.check("Playground")
    expect(page.get_by_test_id("column")).to_have_count(2)
    expect(page.get_by_test_id("example")).to_have_text("Example 1 of the job's test file")
    wanted = json.loads(page.locator("#item").input_value())["order_number"]

    # The answer comes in pieces: the page shows the first while the engine still waits.
    engine.says, engine.pause = json.dumps({"order_number": wanted}), 0.2
    page.locator("#n").fill("2")
    page.evaluate("window.stayed = true")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    expect(page.get_by_test_id("sample")).to_have_count(4)
    expect(page.get_by_test_id("grader-score")).to_have_count(4)
    expect(page.get_by_test_id("column-reading").first).to_contain_text("mean 1.000 of 2")
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()
    assert page.evaluate("window.stayed")
    watched.check("Playground")
    page.get_by_role("button", name="View code").click()
    expect(page.locator("#code-python")).to_contain_text(f'model="{tuned}"')
    # What was typed since, and not what the page came with.
    expect(page.locator("#code-python")).to_contain_text("n=2,")
    expect(page.locator("#code-curl")).to_contain_text('"n": 2')
    page.get_by_role("dialog").get_by_role("button", name="Close").click()

    # Model output is text, whatever it looks like.
    engine.says, engine.pause = "<img src=x onerror=alert(1)><b>bold</b>", 0.0
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_test_id("sample").first).to_contain_text("<b>bold</b>")
    expect(page.locator(".answers img, .answers b")).to_have_count(0)
    expect(page.get_by_test_id("grader-score")).to_have_count(4)
    watched.check("Playground")


def test_stopping_refusals_and_a_model_that_is_not_loaded(
    service: Service, open_page: Open, engine: EngineServer
) -> None:
    seeded, tuned = made(service)
    watched = open_page(service.url)
    page = sign_in(watched, service)
    page.get_by_role("link", name="Playground", exact=True).click()
    watched.check("Playground")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_test_id("column-error")).to_have_text("Choose a model.")
    expect(page.locator("#model")).to_be_focused()

    page.locator("#model").select_option(seed.MODEL)
    page.get_by_label("Text of message 1").fill("one two three four five six")
    engine.pause = 0.5
    page.keyboard.press("Control+Enter")
    expect(page.locator(".said")).to_contain_text("six")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_test_id("column-error")).to_have_text("Stopped.")
    assert engine.left.wait(20)
    engine.pause = 0.0

    page.get_by_role("button", name="Add message").click()
    expect(page.get_by_label("Text of message 2")).to_be_visible()
    page.get_by_role("button", name="Remove message 2").click()
    expect(page.get_by_label("Text of message 1")).to_have_value("one two three four five six")

    with service.context.db.transaction() as session:
        models.stop_model(session, project_id=seeded.project_id, model_id=tuned)
    page.locator("#model").select_option(tuned)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_test_id("column-error")).to_contain_text("was stopped by a person")
    watched.check("Playground")
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.get_by_test_id("column-error")).to_have_text("It answers again. Run to ask it.")
    expect(page.get_by_label("Text of message 1")).to_have_value("one two three four five six")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("sample")).to_contain_text("six five four three two one")
    watched.check("Playground")
