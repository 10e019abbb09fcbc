"""Alembic's environment. The URL comes from `app.core.migrate` or, on the command line, from the settings."""

from typing import Any, Literal

from alembic import context

from app.core.db import Database
from app.core.settings import Settings
from app.core.tables import Json, Row


def render(kind: str, item: object, _context: Any) -> str | Literal[False]:
    """Name our JSON type in a migration; script.py.mako defines it there."""
    return "JSON" if kind == "type" and item is Json else False


def migrate() -> None:
    """Run the migrations on one connection of our own engine, so that its pragmas hold here too."""
    url = context.config.get_main_option("sqlalchemy.url") or Settings().database
    database = Database(url)
    with database.engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Row.metadata,
            compare_type=True,
            render_item=render,
            # SQLite alters a table by copying it.
            render_as_batch=database.is_sqlite,
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    database.dispose()


migrate()
