"""Migrations on both databases: they make exactly the tables there are, and older data stays."""

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from app.core import migrate
from app.core.db import Database
from app.core.settings import Settings
from app.core.tables import Row


def test_the_migrations_make_the_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        found = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(found, Row.metadata) == []


def test_a_model_of_the_first_schema_is_not_stopped(settings: Settings) -> None:
    command.upgrade(migrate.config(settings.database), "0001")
    first = Database(settings.database)
    with first.engine.begin() as connection:
        columns = "(id, kind, base_model, details, created_at)"
        connection.execute(text(f"INSERT INTO models {columns} VALUES ('tiny', 'base', 'tiny', '{{}}', 1.0)"))
    first.dispose()
    migrate.upgrade(settings)
    second = Database(settings.database)
    with second.reading() as session:
        assert session.execute(text("SELECT id, stopped_at FROM models")).all() == [("tiny", None)]
    second.dispose()
