"""Takes the pictures of docs/screenshots from a running service; no test.

`python -m tests.browser.pictures LOGIN_ADDRESS JOB_ID FOLDER` writes job-light.png, job-dark.png and
rollouts-light.png.
"""

import sys
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

from tests.browser.conftest import chromium

PICTURES = (("job", "", "light"), ("job", "", "dark"), ("rollouts", "/rollouts", "light"))


def take(login: str, job_id: str, folder: Path) -> None:
    """Sign in once and write every picture."""
    parts = urlsplit(login)
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1440, "height": 1180})
        page.goto(login)
        for name, tab, scheme in PICTURES:
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            page.goto(f"{parts.scheme}://{parts.netloc}/finetune/{job_id}{tab}")
            page.evaluate("document.fonts.ready")
            page.wait_for_timeout(500)
            page.screenshot(path=folder / f"{name}-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    take(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
