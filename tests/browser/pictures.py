"""Takes the pictures of docs/screenshots from a running service; no test.

`python -m tests.browser.pictures LOGIN_ADDRESS JOB_ID FOLDER` writes job-light.png, job-dark.png and
rollouts-light.png of a job; `… LOGIN_ADDRESS lab FOLDER` has a grader of the sample project tried on fresh
answers of its base model and writes grader-lab-light.png.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import chromium

ROWS = Path(__file__).parents[2] / "examples" / "order-numbers" / "train.jsonl"
SOURCE = """def grade(sample, item):
    said = (sample["output_json"] or {}).get("order_number", "")
    wanted = item["order_number"]
    if said.strip().upper() == wanted:
        return 1.0
    # A part of the number is worth something, a list of numbers is not.
    return 0.3 if len(said) >= 3 and said in wanted else 0.0
"""
PICTURES = (("job", "", "light"), ("job", "", "dark"), ("rollouts", "/rollouts", "light"))


@contextmanager
def signed_in(login: str, folder: Path) -> Iterator[tuple[Page, str]]:
    """Yield a signed-in page and the service's address."""
    parts = urlsplit(login)
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1440, "height": 1180})
        page.goto(login)
        yield page, f"{parts.scheme}://{parts.netloc}"
        browser.close()


def save(page: Page, path: Path) -> None:
    """Write what the page shows, once its fonts are there."""
    page.evaluate("document.fonts.ready")
    page.wait_for_timeout(500)
    page.screenshot(path=path)


def take_job(login: str, job_id: str, folder: Path) -> None:
    """Write the pictures of a job."""
    with signed_in(login, folder) as (page, address):
        for name, tab, scheme in PICTURES:
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            page.goto(f"{address}/finetune/{job_id}{tab}")
            save(page, folder / f"{name}-{scheme}.png")


def take_lab(login: str, folder: Path) -> None:
    """Write the picture of the lab."""
    with signed_in(login, folder) as (page, address):
        # A model answers 32 times before the page comes.
        page.set_default_timeout(240_000)
        page.emulate_media(color_scheme="light")
        page.goto(f"{address}/storage/files")
        page.locator("#file").set_input_files(ROWS)
        page.get_by_role("button", name="Upload", exact=True).click()
        page.get_by_role("link", name="Try a grader").click()
        page.get_by_label("Name").fill("order numbers")
        page.get_by_role("textbox", name="Source").fill(SOURCE)
        page.get_by_label("Right answer").fill('{"order_number": "{{item.order_number}}"}')
        page.get_by_label("Answers are JSON").check()
        page.get_by_label("Fresh answers of a model").select_option(index=1)
        page.get_by_role("button", name="Run probes and answers").click()
        page.get_by_test_id("latency").wait_for()
        save(page, folder / "grader-lab-light.png")


if __name__ == "__main__":
    if sys.argv[2] == "lab":
        take_lab(sys.argv[1], Path(sys.argv[3]))
    else:
        take_job(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
