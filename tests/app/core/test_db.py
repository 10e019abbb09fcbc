"""The schema is the tables', on both databases; SQLite's journal follows the rule."""

import pytest
from alembic import command
from sqlalchemy import select, text

from app.core import db, migrate
from app.core.db import Database, journal_mode, wal_is_safe
from app.core.migrate import SchemaError
from app.core.settings import Settings
from app.core.tables import Project


def test_alembic_check_is_clean(database: Database) -> None:
    """No difference is left between the migrations and `tables.py`."""
    command.check(migrate.config(database.url.render_as_string(hide_password=False)))
    with database.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM alembic_version")) == 1


def test_transaction_rolls_everything_back(database: Database) -> None:
    """An error inside the block leaves no row."""

    def fail() -> None:
        with database.transaction() as session:
            session.add(Project(id="proj_x", name="x", created_at=1.0))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.reading() as session:
        assert session.scalars(select(Project)).all() == []


def test_database_clock_is_the_epoch(database: Database) -> None:
    """`now()` agrees with this machine's clock to a minute, on both databases."""
    from app.core import clock

    with database.reading() as session:
        moment = session.scalar(select(db.database_now()))
    assert moment is not None
    assert abs(float(moment) - clock.now()) < 60


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 4), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 4), True),
    ],
)
def test_wal_only_where_it_is_safe(version: tuple[int, ...], safe: bool) -> None:
    """The WAL-reset bug's versions fall back to TRUNCATE."""
    assert wal_is_safe(version) is safe


def test_sqlite_uses_the_allowed_journal(settings: Settings) -> None:
    """The pragma in force is the rule's answer for the library in use."""
    migrate.upgrade(settings)
    database = Database(settings.database)
    with database.reading() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == journal_mode().lower()
    database.dispose()


def test_newer_data_is_refused(settings: Settings) -> None:
    """A database of a later schema is named as such and left alone."""
    migrate.upgrade(settings)
    database = Database(settings.database)
    with database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match="newer Tunesmith"):
        migrate.upgrade(settings)
    with database.reading() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
    database.dispose()


def test_a_kept_connection_is_not_used_once_its_file_was_replaced(settings: Settings) -> None:
    """Else rows would go into a file nobody can find."""
    migrate.upgrade(settings)
    database = Database(settings.database)
    with database.transaction() as session:
        session.add(Project(id="proj_old", name="x", created_at=1.0))
    path = settings.root / "tunesmith.db"
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    migrate.upgrade(settings)
    with database.transaction() as session:
        assert session.scalars(select(Project)).all() == []
        session.add(Project(id="proj_new", name="x", created_at=1.0))
    database.dispose()
    with Database(settings.database).reading() as session:
        assert session.scalars(select(Project.id)).all() == ["proj_new"]
