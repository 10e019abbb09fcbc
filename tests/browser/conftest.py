"""Fixtures of the browser's journeys: a running service to open, and a page that watches what it loads."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from app.core.context import Context
from app.main import Server, create_app
from app.services import api_keys, logins, projects

AXE = Path(__file__).parent / "vendor" / "axe@4.14.1" / "axe.min.js"
# Long enough for a busy machine: a wait that ends late fails no test, one that never ends does.
PATIENCE_MILLISECONDS = 20_000
expect.set_options(timeout=PATIENCE_MILLISECONDS)
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


class Service:
    """A web process on a free port, without a worker: the test writes what a worker would."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """The dashboard's address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve, on the port of the time before if there was one."""
        app = create_app(self.context.settings)
        config = uvicorn.Config(app, port=self.port, log_config=None, timeout_graceful_shutdown=1)
        self.server = Server(app, config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Stop serving; open streams are cut."""
        self.server.should_exit = True
        self.thread.join()

    def login_url(self) -> str:
        """Return a fresh one-use login address."""
        with self.context.db.transaction() as session:
            project = projects.default_project(session)
            return f"{self.url}/login?token={logins.create_token(session, project_id=project.id)}"

    def key(self) -> str:
        """Return a new API key."""
        with self.context.db.transaction() as session:
            project = projects.default_project(session)
            return api_keys.create_key(session, project_id=project.id, name="browser")[1]


@pytest.fixture
def service(context: Context) -> Iterator[Service]:
    """The web application, served by a thread."""
    with context.db.transaction() as session:
        projects.default_project(session)
    made = Service(context)
    yield made
    made.stop()


def chromium() -> str:
    """Return the browser's program: `CHROMIUM`, or the system's."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "No Chromium was found: install it, or set CHROMIUM to its program."
    return found


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    """One browser for a file's journeys; while it is open, no other test may run an event loop."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, and everything that should not have happened on it."""

    page: Page
    faults: list[str]

    def check(self, heading: str) -> None:
        """Assert that this is the page it should be, accessible, and that nothing went wrong on it."""
        assert self.page.get_by_role("heading", level=1).first.inner_text() == heading
        assert self.faults == []
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate(
            "rules => axe.run({preload: false, runOnly: rules}).then(result => "
            "result.violations.map(v => v.id + ': ' + v.nodes.map(n => n.target).join(', ')))",
            RULES,
        )
        # The checker's own probes trip over the page's policy.
        self.faults.clear()
        assert found == []
        widths = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1]


@pytest.fixture
def open_page(chrome: Browser) -> Iterator[Callable[..., Watched]]:
    """A function that opens a signed-out page of some size and theme."""
    contexts = []

    def make(origin: str, *, width: int = 1440, height: int = 900, scheme: str = "light") -> Watched:
        context = chrome.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MILLISECONDS)
        watched = Watched(page, [])

        def on_request(request: Request) -> None:
            if not request.url.startswith((origin, "data:")):
                watched.faults.append(f"asked elsewhere: {request.url}")

        def on_console(message: ConsoleMessage) -> None:
            # A page that answers 4xx on purpose is told so in the console.
            if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
                watched.faults.append(f"console: {message.text}")

        page.on("request", on_request)
        page.on("console", on_console)
        page.on("pageerror", lambda error: watched.faults.append(f"script: {error}"))
        return watched

    yield make
    for context in contexts:
        context.close()
