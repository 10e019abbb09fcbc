"""Journey J5 in a browser: a model's page, its export built while the page follows, kept back, taken away.

What the worker would do is done by the test through the services.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from app.core.tables import Job
from app.services import exports
from app.services.exports import Lease
from tests.app.dashboard import seed
from tests.browser.conftest import Service, Watched
from tests.browser.test_job_journey import sign_in

Open = Callable[..., Watched]
PARITY = {"prompts": 32, "positions": 6460, "agreement": 1.0, "same_texts": 32, "near_ties": 0}


def claim(service: Service) -> Lease:
    """Claim the export that waits."""
    with service.context.db.transaction() as session:
        lease = exports.claim(session, seconds=600)
    assert lease is not None
    return lease


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_model_is_exported_from_its_page(
    service: Service, open_page: Open, tmp_path: Path, scheme: str
) -> None:
    made = seed.seed(service.context)
    with service.context.db.reading() as session:
        model_id = session.get_one(Job, made.succeeded).fine_tuned_model or ""
    watched = open_page(service.url, scheme=scheme)
    page = sign_in(watched, service)
    page.get_by_role("link", name="Models", exact=True).click()
    page.locator(f'a[href="/models/{quote(model_id)}"]').click()
    expect(page.get_by_test_id("lineage")).to_contain_text("orders_train.jsonl")
    expect(page.get_by_test_id("verdict")).to_contain_text("Better than the base model")
    expect(page.get_by_test_id("checkpoint-row")).to_have_count(4)
    expect(page.get_by_test_id("serve-state")).to_have_text("Not answering")
    watched.check(model_id)

    page.get_by_role("button", name="Build LoRA adapter").click()
    adapter = page.locator('[data-form="adapter"]')
    expect(adapter).to_contain_text("Waiting for the worker, 0%")
    # From here on the page follows by itself.
    page.evaluate("window.stayed = true")
    lease = claim(service)
    with service.context.db.transaction() as session:
        exports.tell(session, lease=lease, stage="Comparing both models", progress=0.62)
    expect(adapter).to_contain_text("Comparing both models, 62%")
    watched.check(model_id)
    archive = tmp_path / "made.zip"
    with zipfile.ZipFile(archive, "w") as made_archive:
        made_archive.writestr("model/README.md", "# The card")
    uri = f"jobs/{made.succeeded}/exports/adapter"
    size, digest = service.context.storage.write(uri, [archive.read_bytes()])
    with service.context.db.transaction() as session:
        exports.offer(session, lease=lease, uri=uri, size=size, sha256=digest, parity=PARITY)
    expect(adapter).to_contain_text("32 of 32 greedy texts equal")
    expect(adapter.locator(f'code[title="{digest}"]')).to_be_visible()
    with page.expect_download() as download:
        adapter.get_by_role("link", name="Download").click()
    with zipfile.ZipFile(download.value.path()) as taken:
        assert taken.read("model/README.md") == b"# The card"
    assert download.value.suggested_filename.endswith("-adapter.zip")
    assert page.evaluate("window.stayed")

    page.get_by_role("button", name="Build Merged weights").click()
    lease = claim(service)
    reason = "It does not answer as the trained model does. 3 of 32 greedy texts differ, and not at a tie."
    with service.context.db.transaction() as session:
        exports.refuse(session, lease=lease, reason=reason, parity=PARITY | {"same_texts": 29})
    expect(page.get_by_test_id("export-reason")).to_have_text(reason)
    expect(page.get_by_role("button", name="Build again Merged weights")).to_be_visible()
    page.get_by_role("button", name="Remove LoRA adapter").click()
    expect(page.get_by_role("button", name="Build LoRA adapter")).to_be_visible()
    watched.check(model_id)

    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete the model").click()
    page.wait_for_url("**/models")
    expect(page.locator(f'a[href="/models/{quote(model_id)}"]')).to_have_count(0)
