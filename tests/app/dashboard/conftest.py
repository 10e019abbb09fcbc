"""Fixtures of the dashboard's tests: the web application over a seeded project, and a browser-like client."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.core import clock, migrate
from app.core.context import Context
from app.core.settings import Settings
from app.core.tables import Heartbeat
from app.main import create_app
from app.services import logins
from tests.app.dashboard import seed
from tests.app.dashboard.seed import Seeded


@pytest.fixture(scope="session")
def seeded_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Seeded]:
    """A seeded data folder, to be copied: seeding takes longer than any test here."""
    settings = Settings(data=tmp_path_factory.mktemp("seeded") / "data")
    migrate.upgrade(settings)
    context = Context.build(settings)
    made = seed.seed(context)
    context.db.dispose()
    return settings.root, made


@pytest.fixture
def context(settings: Settings, seeded_once: tuple[Path, Seeded]) -> Iterator[Context]:
    """A process's own parts over a copy of the seeded folder."""
    shutil.copytree(seeded_once[0], settings.root)
    context = Context.build(settings)
    with context.db.transaction() as session:
        session.get_one(Heartbeat, "worker").beat_at = clock.now()
    yield context
    context.db.dispose()


@pytest.fixture
def seeded(seeded_once: tuple[Path, Seeded]) -> Seeded:
    """The ids of a project with jobs in every status."""
    return seeded_once[1]


@pytest.fixture
def anonymous(context: Context) -> Iterator[TestClient]:
    """A browser nobody has signed in with."""
    app = create_app(context.settings)
    yield TestClient(app, follow_redirects=False, raise_server_exceptions=False)
    app.state.context.db.dispose()


@pytest.fixture
def browser(anonymous: TestClient, context: Context, seeded: Seeded) -> TestClient:
    """A signed-in browser."""
    with context.db.transaction() as session:
        token = logins.create_token(session, project_id=seeded.project_id)
    answer = anonymous.get(f"/login?token={token}")
    assert answer.status_code == 303
    return anonymous


@pytest.fixture
def csrf(browser: TestClient) -> str:
    """The token this browser's forms carry."""
    return browser.get("/models").text.split('name="csrf" value="')[1].split('"')[0]
