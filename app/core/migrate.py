"""Brings a database to this program's schema. Called by the commands before any part starts."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.core.db import Database
from app.core.errors import AppError
from app.core.settings import Settings

_ROOT = Path(__file__).resolve().parents[2]


class SchemaError(AppError):
    """The data belongs to another version of the program."""


def config(url: str) -> Config:
    """Return Alembic's configuration for one database."""
    settings = Config()
    settings.set_main_option("script_location", str(_ROOT / "migrations"))
    settings.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return settings


def upgrade(settings: Settings) -> None:
    """Apply the migrations this database lacks.

    Raises: SchemaError when the database was written by a newer program; nothing is changed then.
    """
    alembic = config(settings.database)
    script = ScriptDirectory.from_config(alembic)
    database = Database(settings.database)
    with database.engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    database.dispose()
    if current is not None and current not in {r.revision for r in script.walk_revisions()}:
        raise SchemaError(
            f"The data in {settings.root} was written by a newer Tunesmith (schema {current}). "
            "Update this program, or set TUNESMITH_DATA to another folder."
        )
    command.upgrade(alembic, "head")
