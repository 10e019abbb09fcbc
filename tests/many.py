"""Many rows fast: one row that a service made, copied inside the database with its places changed.

For tests and benches that ask what a list costs when it is long.
"""

from collections.abc import Mapping

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.core.tables import Row

# `i` counts from 1.
SERIES = "WITH RECURSIVE series(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM series WHERE i < :times)"


def multiply(
    session: Session, table: type[Row], *, source: str, times: int, changes: Mapping[str, str | None]
) -> None:
    """Insert `times` copies of the row whose id is `source`.

    `changes` gives SQL for a column, in which `i` is the copy's number; None leaves it to its default.
    """
    name = table.__tablename__
    columns = [column.name for column in table.__table__.columns if changes.get(column.name, "") is not None]
    values = [changes.get(column) or f"{name}.{column}" for column in columns]
    session.execute(
        text(
            f"{SERIES} INSERT INTO {name} ({', '.join(columns)}) "
            f"SELECT {', '.join(values)} FROM {name}, series WHERE {name}.id = :source"
        ),
        {"times": times, "source": source},
    )


def new_ids(prefix: str) -> str:
    """Return SQL for an id that no other copy has."""
    return f"'{prefix}' || CAST(i AS TEXT)"
